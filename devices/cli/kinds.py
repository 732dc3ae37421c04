"""Kinds of settings: what the annotation of a field takes, in words, and how a flag's or a file's value becomes it."""

# coverage: every branch

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from devices.cli import values


def type_of(kind: object) -> inspect.Type:
    """Return the type of an annotation, without None and without what is only said of it."""
    facts = inspect.type_info(kind)
    while True:
        if isinstance(facts, inspect.Metadata):
            facts = facts.type
        elif isinstance(facts, inspect.UnionType):
            (facts,) = (each for each in facts.types if not isinstance(each, inspect.NoneType))
        else:
            return facts


def is_path(kind: object) -> bool:
    """Return whether an annotation is of a path."""
    facts = type_of(kind)
    return isinstance(facts, inspect.CustomType) and facts.cls is Path


def parse(text: str, kind: Any) -> Any:
    """Return the value of a flag's words. Raises ValueError, msgspec.ValidationError."""
    return convert(_syntax(type_of(kind))(text), kind, strict=False)


def convert(value: object, kind: Any, *, strict: bool = True) -> Any:
    """Return a value of a file as what the annotation says. Raises msgspec.ValidationError."""
    return msgspec.convert(value, kind, strict=strict, dec_hook=_hook)


def _syntax(facts: inspect.Type) -> Callable[[str], object]:
    """Return what makes a value of the words of a flag."""
    if isinstance(facts, inspect.VarTupleType):
        return values.groups if isinstance(_items(facts), inspect.VarTupleType) else values.names
    return values.by_task if isinstance(facts, inspect.DictType) else str


def _items(facts: inspect.VarTupleType) -> inspect.Type:
    return facts.item_type.type if isinstance(facts.item_type, inspect.Metadata) else facts.item_type


def _hook(_kind: type, value: object) -> Path:
    """Return a path: the one type here that msgspec does not know."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("Expected a path")
    return Path(value)


def bounds(kind: object) -> str:
    """Return the bounds of a number, for people; empty for what has none."""
    facts = type_of(kind)
    if not isinstance(facts, inspect.IntType | inspect.FloatType):
        return ""
    if facts.ge is not None and facts.le is not None:
        return f"{plain(facts.ge)} to {plain(facts.le)}"
    low = (
        f"{plain(facts.ge)} or more"
        if facts.ge is not None
        else f"above {plain(facts.gt)}"
        if facts.gt is not None
        else ""
    )
    high = (
        f"at most {plain(facts.le)}"
        if facts.le is not None
        else f"below {plain(facts.lt)}"
        if facts.lt is not None
        else ""
    )
    return " and ".join(filter(None, (low, high)))


def takes(kind: object) -> str:
    """Return the values that an annotation takes, for people."""
    match type_of(kind):
        case inspect.IntType() | inspect.FloatType() as facts:
            number = "a whole number" if isinstance(facts, inspect.IntType) else "a number"
            text = ", ".join(filter(None, (number, bounds(kind))))
        case inspect.LiteralType(values=words):
            text = f"one of {', '.join(map(str, words))}"
        case inspect.BoolType():
            text = "true or false"
        case inspect.DictType():
            text = "a number for each task: a=2,b=0.5"
        case inspect.VarTupleType() as facts:
            is_nested = isinstance(_items(facts), inspect.VarTupleType)
            text = "groups of tasks: a,b;c" if is_nested else "names: a,b,c"
        case inspect.StrType(pattern=pattern):
            text = "text" if pattern is None else f"text of the form {pattern}"
        case _:
            text = "a path"
    return text


def plain(value: object) -> str:
    """Return a value for people, as a file has it without its quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if value >= 100_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
