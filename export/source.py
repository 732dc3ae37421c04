"""A model from a user's file: `FILE.py:function`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from export.errors import ModelInvalid
from export.model import MultiTaskModel


def build_model(source: str, seed: int) -> MultiTaskModel:
    """Run `function` of `FILE.py` with PyTorch seeded. Raises ModelInvalid; what the file itself raises passes."""
    file, colon, name = source.rpartition(":")
    if not colon or not name.isidentifier():
        raise ModelInvalid(f"{source!r} does not name a function: write FILE.py:build")
    build = _function(Path(file), name)
    torch.manual_seed(seed)
    model = build()
    if not isinstance(model, MultiTaskModel):
        raise ModelInvalid(f"{source} returned {type(model).__name__}: return an export.model.MultiTaskModel")
    return model


def _function(path: Path, name: str) -> Callable[[], object]:
    if not path.is_file():
        raise ModelInvalid(f"{path} does not exist: give the file that defines {name}()")
    spec = importlib.util.spec_from_file_location(f"model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelInvalid(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # so that the file may import its neighbours
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelInvalid(f"{path} has no function {name}()")
    return function  # type: ignore[no-any-return]
