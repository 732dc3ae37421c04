"""What Python objects are, as a digest: the same for objects that behave alike, another one where that is not sure.

Objects are taken apart into plain values: tensors and arrays by their numbers, modules and other instances by their
attributes, functions by where they are written and by what they hold, classes by their names. What code is written
where is the caller's to know. What has a state that cannot be seen, such as an open file, is refused, never guessed.
"""

import functools
import hashlib
import logging
import sys
import types
import weakref
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), PurePath),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, np.generic),
    *(types.GenericAlias, types.UnionType),
)
"""What `repr` tells all of."""
CONTAINERS = (list, tuple, dict, set, frozenset)


class Indescribable(Exception):
    """An object's state cannot be seen. The text says what it is."""


def object_digest(
    values: Iterable[Any], is_local: Callable[[str], bool] = lambda _: False, *, varying: Iterable[torch.Tensor] = ()
) -> str:
    """Return the SHA-256 of some objects and all that they hold. Raises Indescribable.

    Of classes in the modules for which `is_local`, the attributes count too. The numbers of `varying` tensors do not.
    """
    digest = _Digest(is_local, {id(tensor) for tensor in varying})
    for value in values:
        digest.add(value)
    return digest.hexdigest()


class _Digest:
    def __init__(self, is_local: Callable[[str], bool], varying: Collection[int]) -> None:
        self._hash = hashlib.sha256()
        self._is_local = is_local
        self._varying = varying
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # an object that is gone may leave its id to another

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        kind = type(value)
        self._say(kind.__module__, kind.__qualname__)
        if isinstance(value, PLAIN) or kind.__module__ == "typing":
            self._say(repr(value))
            return
        self._say(str(self._seen.get(id(value), "new")))
        if id(value) in self._seen:
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        try:
            self._add_new(value)
        except Indescribable:
            raise
        except Exception as exc:  # a user's object may raise anything, and may be nested too deeply
            raise Indescribable(f"an object of {kind.__module__}.{kind.__qualname__} ({type(exc).__name__})") from exc

    def _say(self, *texts: str) -> None:
        for text in texts:
            data = text.encode(errors="surrogatepass")
            self._hash.update(b"%d:" % len(data) + data)

    def _add_new(self, value: Any) -> None:  # noqa: C901, PLR0912 - a case for each kind
        match value:
            case torch.Tensor():
                self._tensor(value)
            case np.ndarray() if not value.dtype.hasobject:
                self._say(str(value.shape), str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest())
            case torch.Generator():
                self._tensor(value.get_state())
            case types.ModuleType() | logging.Logger():
                self._say(getattr(value, "__name__", None) or value.name)
            case torch._ops.OpOverload() | torch._ops.OpOverloadPacket():  # noqa: SLF001
                self._say(str(value))
            case types.FunctionType():
                self._function(value)
            case types.MethodType():
                self._all(value.__func__, value.__self__)
            case functools.partial():
                self._all(value.func, value.args, value.keywords, vars(value))
            case staticmethod() | classmethod():
                self.add(value.__func__)
            case property():
                self._all(value.fget, value.fset, value.fdel)
            case functools.cached_property():
                self.add(value.func)
            case weakref.ref():
                self.add(value())
            case type():
                self._class(value)
            case types.BuiltinFunctionType() | np.ufunc():
                self._say(getattr(value, "__qualname__", None) or value.__name__)
                bound = getattr(value, "__self__", None)
                self._all(*([] if isinstance(bound, types.ModuleType | type) else [bound]))
            case _ if hasattr(value, "__get__") and not hasattr(value, "__dict__"):  # an attribute of a class in C
                self._say(repr(value))
            case types.MappingProxyType():
                self.add(dict(value))
            case _:
                self._instance(value)

    def _all(self, *values: Any) -> None:
        for value in values:
            self.add(value)

    def _tensor(self, value: torch.Tensor) -> None:
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise Indescribable(f"a tensor on {value.device} of layout {value.layout}")
        stated = (*value.shape, value.stride(), value.dtype, value.requires_grad, value.is_leaf)
        numbers = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._say(str(stated), "" if id(value) in self._varying else hashlib.sha256(numbers.data).hexdigest())
        self.add(vars(value))

    def _function(self, value: types.FunctionType) -> None:
        code = value.__code__
        if not Path(code.co_filename).is_file():
            raise Indescribable(f"{value.__qualname__}(), whose source is in no file")
        self._say(value.__module__ or "", value.__qualname__)
        self._code(code)
        self._all(*map(_held, value.__closure__ or ()))
        self._all(value.__defaults__, value.__kwdefaults__, vars(value))

    def _code(self, code: types.CodeType) -> None:
        """Two functions may stand in one line."""
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self._say(code.co_name, str(code.co_firstlineno), code.co_code.hex(), repr(names))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.add(constant)

    def _class(self, value: type) -> None:
        self._say(value.__module__, value.__qualname__)
        if self._is_local(value.__module__):
            for name, attribute in vars(value).items():
                if not _is_pythons_own(name):
                    self._say(name)
                    self.add(attribute)
            self._all(*value.__bases__)

    def _items(self, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                self._all(key, item)
        elif isinstance(value, set | frozenset):
            if not all(isinstance(item, PLAIN) for item in value):
                raise Indescribable("a set of objects, which has no order")
            self._all(*sorted(value, key=repr))
        elif isinstance(value, list | tuple):
            self._all(len(value), *value)

    def _instance(self, value: Any) -> None:
        kind = type(value)
        own = [each for each in kind.__mro__ if each is not object and each not in CONTAINERS]
        hidden = next((each for each in own if not _is_in_python(each)), None)
        known = isinstance(value, CONTAINERS) or hasattr(value, "__dict__") or any("__slots__" in vars(c) for c in own)
        if hidden is not None or not known:
            raise Indescribable(f"an object of {kind.__module__}.{kind.__qualname__}")
        self.add(kind)
        self._items(value)
        if hasattr(value, "__dict__"):
            self.add(vars(value))
        for each in own:
            slots = vars(each).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                    self._say(name)
                    self.add(getattr(value, name))


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


def _is_pythons_own(name: str) -> bool:
    return (name.startswith("__") and name.endswith("__")) or name == "_abc_impl"


def _is_in_python(kind: type) -> bool:
    """Return whether a class is written in Python, so that its instances hold nothing but attributes."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return file.endswith(".py") or (kind.__module__, kind.__qualname__) == ("collections", "OrderedDict")
