"""A model from a user's file: `FILE.py:function`."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from export.errors import ModelInvalid
from export.model import MultiTaskModel


def build_model(source: str, seed: int) -> MultiTaskModel:
    """Run `function` of `FILE.py` with PyTorch seeded. Raises ModelInvalid, also for what the file itself raises."""
    file, colon, name = source.rpartition(":")
    if not colon or not name.isidentifier():
        raise ModelInvalid(f"{source!r} does not name a function: write FILE.py:build")
    build = _function(Path(file), name)
    torch.manual_seed(seed)
    with _blame(Path(file)):
        model = build()
    if not isinstance(model, MultiTaskModel):
        raise ModelInvalid(f"{source} returned {type(model).__name__}: return an export.model.MultiTaskModel")
    return model


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Whatever a user's own file raises becomes one sentence with the line of the file."""
    try:
        yield
    except SyntaxError as exc:
        raise ModelInvalid(f"{exc.filename or path}, line {exc.lineno}: {exc.msg}") from exc
    except (Exception, SystemExit) as exc:  # the file may raise anything, or end the process
        frames = [f for f in traceback.extract_tb(exc.__traceback__) if Path(f.filename).name == path.name]
        line = f", line {frames[-1].lineno}" if frames else ""
        text = str(exc).strip().partition("\n")[0]
        raise ModelInvalid(f"{path}{line}: {type(exc).__name__}: {text}") from exc


def _function(path: Path, name: str) -> Callable[[], object]:
    if not path.is_file():
        raise ModelInvalid(f"{path} does not exist: give the file that defines {name}()")
    spec = importlib.util.spec_from_file_location(f"model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelInvalid(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # so that the file may import its neighbours
    with _blame(path):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelInvalid(f"{path} has no function {name}()")
    return function  # type: ignore[no-any-return]
