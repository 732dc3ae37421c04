"""What a bundle was made from, so that a model is not compiled again when nothing has changed.

Beside its manifest a bundle has a file with two digests: of all that decides the bundle, and of the manifest. The first
is over

- the model that build() has returned: all tensors, and all that its modules, losses and examples hold;
- the code: the model's file, what it imports that is not installed, and our own;
- what values such files keep, and all environment variables and arguments where they look at any;
- the options, and the versions of Python and of all that is installed.

Where one of these cannot be known (code that imports by a computed name, an object whose state cannot be seen), there
is no digest, and the model is compiled. What forward() or a loss reads from a file of its own accord is not seen.
"""

import ast
import importlib.metadata
import importlib.util
import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch

import devices
import edge_runtime
import export
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.errors import WireError
from edge_runtime.wire.files import digest_file, write_atomic
from edge_runtime.wire.manifest import Manifest
from export.model import MultiTaskModel
from export.object_digest import Indescribable, object_digest

NAME = "made-from.json"
OURS = tuple(Path(package.__path__[0]).resolve() for package in (export, edge_runtime, devices))
RUN_CODE = {"exec", "eval", "__import__"}
"""Functions by which a file runs code that its imports do not show."""
IMPORTERS = {"importlib", "runpy", "pkgutil", "imp"}
"""Modules that import others by computed names."""
HARMLESS = {"importlib.metadata", "importlib.resources"}
SURROUNDINGS = {"environ", "environb", "getenv", "argv"}
"""Names by which a file sees environment variables and arguments."""


class MadeFrom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file in the bundle's folder."""

    sources: str
    manifest: str


def digest_of_sources(file: Path, model: MultiTaskModel, options: Sequence[Any]) -> str:
    """Return the digest of all that decides the bundle of a model that `file` has built just now.

    Raises Indescribable, which says what cannot be known.
    """
    files = sorted(_local_files(file.resolve()))
    found: list[Any] = [list(options), sys.version, platform.machine(), torch.get_default_dtype()]
    found.append(sorted(f"{each.name} {each.version}" for each in importlib.metadata.distributions()))
    found.append([(str(path), digest_file(path)) for path in files])
    ours = [path for package in OURS for path in sorted(package.rglob("*.py"))]
    found.append([digest_file(path) for path in ours])
    if any(_sees_surroundings(path) for path in files if path.suffix == ".py"):
        found.append((dict(os.environ), sys.argv))
    local = {*files, *ours}
    names = {
        name: module
        for name, module in dict(sys.modules).items()
        if (origin := getattr(module, "__file__", None)) and Path(origin).resolve() in local
    }
    kept = {
        name: {key: value for key, value in vars(module).items() if not key.startswith("__")}
        for name, module in sorted(names.items())
        if Path(str(module.__file__)).resolve() in files
    }
    return object_digest([found, kept, model], names.__contains__)


def up_to_date(folder: Path, sources: str) -> tuple[Manifest, datetime] | None:
    """Return the manifest of the bundle in a folder and when it was made, if it was from these sources and is whole."""
    path = folder / NAME
    try:
        made = msgspec.json.decode(path.read_bytes(), type=MadeFrom)
        if made != MadeFrom(sources=sources, manifest=digest_file(folder / bundle_folder.MANIFEST)):
            return None
        return bundle_folder.read_folder(folder), datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except (OSError, WireError, msgspec.MsgspecError):
        return None


def forget(folder: Path) -> None:
    """Remove the file, before the bundle is written anew."""
    (folder / NAME).unlink(missing_ok=True)


def write(folder: Path, sources: str) -> None:
    """Write the file beside the manifest of a bundle that has just been written."""
    made = MadeFrom(sources=sources, manifest=digest_file(folder / bundle_folder.MANIFEST))
    write_atomic(folder / NAME, msgspec.json.encode(made))


def _local_files(file: Path) -> set[Path]:
    """Return a file and all that it may import and that is not installed. Raises Indescribable."""
    found = {file}
    ahead = [file]
    while ahead:
        path = ahead.pop()
        new = {each.resolve() for each in _imported(path)} - found if path.suffix == ".py" else set()
        found |= new
        ahead += new
    return found


def _imported(path: Path) -> Iterator[Path]:
    """Yield the files that a file imports, at whatever place in it, if they are not installed. Raises Indescribable."""
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(path, alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}" if node.module else alias.name
                if node.level:
                    yield from _below([path.parents[node.level - 1]], name.split("."))
                elif node.module not in HARMLESS:
                    yield from _absolute(path, name)
        elif isinstance(node, ast.Name) and node.id in RUN_CODE:
            raise Indescribable(f"code that {path} runs by {node.id}()")


def _nodes(path: Path) -> Iterator[ast.AST]:
    try:
        return ast.walk(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as exc:
        raise Indescribable(f"what {path} would do, which is not Python,") from exc


def _absolute(path: Path, name: str) -> Iterator[Path]:
    """Yield the files of a module and of the packages around it, unless they are installed, or ours."""
    top, *rest = name.split(".")
    if top in IMPORTERS:
        raise Indescribable(f"what {path} imports by {top}")
    if top in {package.name for package in OURS}:
        return
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as exc:  # a module that was put into sys.modules by hand
        raise Indescribable(f"where module {top} comes from") from exc
    if spec is None or spec.origin in ("built-in", "frozen"):
        return
    folders = [Path(each).resolve() for each in spec.submodule_search_locations or ()]
    file = None if spec.origin is None else Path(spec.origin).resolve()
    if any(place.is_relative_to(installed) for place in (*folders, file) if place for installed in _installed()):
        return
    yield from () if file is None else (file,)
    yield from _below(folders, rest)


def _below(folders: Sequence[Path], names: Sequence[str]) -> Iterator[Path]:
    """Yield the files of a module in some folders, and of the packages around it."""
    for name in names:
        files = [path for folder in folders for path in (folder / f"{name}.py", *folder.glob(f"{name}.*.so"))]
        folders = [folder / name for folder in folders]
        yield from (path for path in (*files, *(folder / "__init__.py" for folder in folders)) if path.is_file())


@cache
def _installed() -> frozenset[Path]:
    paths = {sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return frozenset(Path(path).resolve() for path in {*paths, *site.getsitepackages(), site.getusersitepackages()})


def _sees_surroundings(path: Path) -> bool:
    for node in _nodes(path):
        if isinstance(node, ast.Attribute) and node.attr in SURROUNDINGS:
            return True
        if isinstance(node, ast.ImportFrom) and SURROUNDINGS.intersection(alias.name for alias in node.names):
            return True
    return False
