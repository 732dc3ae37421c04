"""Settings: one struct is the file, its flags, its table in the documents, its JSON schema and the object in use.

A field is a setting, and a field that is a struct is a table of the file. Bounds and defaults are the struct's. The
`Meta` of a field has the sentence that help and documents print, and in `extra`:

    common      the short help shows it
    flag        its flag, where that is not the prefix and the key
    prefix      of a table: what the flags of its keys begin with
    secret      no message shows its value

Values come in layers: the defaults, a file, the command line; the last one that has a key counts, and `Effective` knows
which one that was.
"""

# coverage: every branch

import argparse
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from devices.cli import kinds
from devices.cli.run import UsageError

MAX_FILE_BYTES = 64 * 1024
DEFAULT, COMMAND_LINE = "default", "command line"
UNITS = {"_s": "s", "_w": "W", "_bytes": "bytes", "_mib": "MiB", "_days": "days"}
"""The unit of a setting by how its key ends."""
Tree = dict[str, Any]
T = TypeVar("T", bound=msgspec.Struct)

SHOWN_CHOICES = 8
"""As many values a flag's help lists; of more a wrong one is told."""


class ConfigInvalid(UsageError):
    """The settings cannot be used; the sentence names the file and the key."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a struct. `path` are the keys that lead to it; `kind` is its annotation, with bounds."""

    path: tuple[str, ...]
    flag: str
    kind: Any
    default: Any
    sentence: str
    is_common: bool
    is_secret: bool

    @property
    def key(self) -> str:
        """The key as a file has it: training.lr."""
        return ".".join(self.path)

    @property
    def table(self) -> str:
        """The table of the file that it stands in; empty for none."""
        return ".".join(self.path[:-1])

    @property
    def unit(self) -> str:
        """The unit of its value; empty for none."""
        return next((unit for ending, unit in UNITS.items() if self.path[-1].endswith(ending)), "")

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is msgspec.NODEFAULT

    @property
    def default_text(self) -> str:
        """The default, for people; empty for none."""
        if self.is_required or self.default is None or self.default in ((), {}, ""):
            return ""
        return kinds.plain(self.default)

    @property
    def takes(self) -> str:
        """The values that it takes, for people."""
        return kinds.takes(self.kind)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, where these are few."""
        found = kinds.type_of(self.kind)
        return tuple(map(str, found.values)) if isinstance(found, inspect.LiteralType) else ()

    @property
    def help(self) -> str:
        """The sentence, unit, bounds and default, for a flag."""
        default = f"default {self.default_text}" if self.default_text else ""
        more = "; ".join(filter(None, (self.unit, kinds.bounds(self.kind), default)))
        return f"{self.sentence} [{more}]".replace("%", "%%") if more else self.sentence.replace("%", "%%")

    def parse(self, text: str) -> Any:
        """Return the value of a flag. Raises argparse.ArgumentTypeError."""
        try:
            return kinds.parse(text, self.kind)
        except (ValueError, msgspec.ValidationError) as exc:
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.takes}") from exc


@dataclass(frozen=True)
class Effective(Generic[T]):
    """The settings in use, and by key where each came from: DEFAULT, a file's name or COMMAND_LINE."""

    value: T
    sources: Mapping[str, str]


def settings_of(
    kind: type[msgspec.Struct], *, default: object = None, path: tuple[str, ...] = (), prefix: str = ""
) -> tuple[Setting, ...]:
    """Return the settings of a struct, in the order of its fields, those of its tables among them."""
    found: list[Setting] = []
    for field in msgspec.structs.fields(kind):
        facts = inspect.type_info(field.type)
        about, extra = "", {}
        if isinstance(facts, inspect.Metadata):
            about, extra = (facts.extra_json_schema or {}).get("description", ""), facts.extra or {}
            facts = facts.type
        value = getattr(default, field.name) if default is not None else _default(field)
        here = (*path, field.name)
        if isinstance(facts, inspect.StructType):
            found += settings_of(facts.cls, default=value, path=here, prefix=extra.get("prefix", prefix))
            continue
        flag = extra.get("flag", f"--{prefix}{field.name}".replace("_", "-"))
        found.append(
            Setting(
                path=here,
                flag=flag,
                kind=field.type,
                default=value,
                sentence=about,
                is_common="common" in extra,
                is_secret="secret" in extra,
            )
        )
    return tuple(found)


def tables_of(kind: type[msgspec.Struct], path: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the sentence of each table of a struct's file, by its key."""
    found = {}
    for field in msgspec.structs.fields(kind):
        facts = inspect.type_info(field.type)
        inner = facts.type if isinstance(facts, inspect.Metadata) else facts
        if isinstance(inner, inspect.StructType):
            about = (facts.extra_json_schema or {}) if isinstance(facts, inspect.Metadata) else {}
            found[".".join((*path, field.name))] = str(about.get("description", ""))
            found |= tables_of(inner.cls, (*path, field.name))
    return found


def by_table(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Return the settings by the table that they stand in, those in none first."""
    found: dict[str, list[Setting]] = {"": []}
    for each in settings:
        found.setdefault(each.table, []).append(each)
    return {table: several for table, several in found.items() if several}


def add_flags(
    parser: argparse.ArgumentParser,
    settings: Iterable[Setting],
    titles: Mapping[str, str] | None = None,
    *,
    is_shown: Callable[[Setting], bool] = lambda _: True,
) -> None:
    """Add a flag for each setting, those of a table in a group of its own; absent flags leave no trace.

    `titles` has what a group's title says beside its key, by table. What is not shown is taken all the same.
    """
    for table, several in by_table(settings).items():
        about = (titles or {}).get(table, "")
        title = f"[{table}] {about}".rstrip() if table else about or "settings"
        group = parser.add_argument_group(title) if any(map(is_shown, several)) else parser
        for each in several:
            _add_flag(group, each, each.help if is_shown(each) else argparse.SUPPRESS)


def _add_flag(group: Any, setting: Setting, text: str) -> None:
    facts = kinds.type_of(setting.kind)
    options: dict[str, Any] = {"dest": setting.key, "default": argparse.SUPPRESS, "help": text}
    if isinstance(facts, inspect.BoolType):
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **options)
    elif 0 < len(setting.choices) <= SHOWN_CHOICES:
        group.add_argument(setting.flag, choices=setting.choices, **options)
    else:
        options["metavar"] = setting.path[-1].removesuffix("_s").rpartition("_")[2].upper()
        known = {"choices": setting.choices} if setting.choices else {"type": setting.parse}
        group.add_argument(setting.flag, **known, **options)


def of_flags(options: argparse.Namespace, settings: Iterable[Setting]) -> Tree:
    """Return the settings that the command line has, as a file would have them."""
    tree: Tree = {}
    for each in settings:
        if hasattr(options, each.key):
            put(tree, each.path, getattr(options, each.key))
    return tree


def put(tree: Tree, path: Sequence[str], value: object) -> None:
    """Set a key of a tree of tables."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def read_toml(path: Path) -> Tree:
    """Return a file's keys. Raises ConfigInvalid for what is not a file, is too large or not TOML."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigInvalid(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigInvalid(f"{path} is over {MAX_FILE_BYTES} bytes: it is not a file of settings")
        tree: Tree = msgspec.toml.decode(data)
    except OSError as exc:
        raise ConfigInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, ImportError) as exc:
        raise ConfigInvalid(f"{path} is not TOML: {exc}") from exc
    return tree


def has(tree: object, key: str) -> bool:
    """Return whether a tree has something at a key such as training.lr."""
    return _at(tree, key.split(".")) is not None


def beside(path: Path, tree: Tree, kind: type[msgspec.Struct]) -> Tree:
    """Return the tree of a file with its relative paths made absolute: they are relative to the file's folder."""
    made = _copied(tree)
    for each in settings_of(kind):
        if kinds.is_path(each.kind) and isinstance(text := _at(made, each.path), str) and text:
            put(made, each.path, os.path.normpath(path.resolve().parent / text))
    return made


def build(kind: type[T], layers: Sequence[tuple[str, Tree]]) -> Effective[T]:
    """Return the struct that the layers make, each a source with its tree, the last one over the others.

    Raises ConfigInvalid, with the source and the key in front and the nearest key for one that does not exist.
    """
    merged: Tree = {}
    settings = {each.key: each for each in settings_of(kind)}
    sources = dict.fromkeys(settings, DEFAULT)
    for source, tree in layers:
        for key, value in _leaves(kind, tree, source, settings):
            put(merged, key.split("."), value)
            sources[key] = source
            _check(settings[key], value, source)
    for each in settings.values():
        if each.is_required and sources[each.key] == DEFAULT:
            raise ConfigInvalid(f"{layers[0][0]}: {each.key} is missing: {each.sentence}")
    try:
        return Effective(kinds.convert(merged, kind), sources)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(f"{layers[0][0]}: {exc}") from exc


def _leaves(
    kind: type[msgspec.Struct], tree: object, source: str, settings: Mapping[str, Setting], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, object]]:
    """Yield each setting of a tree with its value. Raises ConfigInvalid for a key that does not exist."""
    if not isinstance(tree, dict):
        raise ConfigInvalid(f"{source}: {'.'.join(path)}: a table of keys is needed")
    tables = dict(_tables(kind))
    for name, value in tree.items():
        key = ".".join((*path, name))
        if name in tables:
            yield from _leaves(tables[name], value, source, settings, (*path, name))
        elif key in settings:
            yield key, value
        else:
            raise ConfigInvalid(f"{source}: {key}: there is no such key{nearest(key, settings)}")


def nearest(key: str, known: Iterable[str]) -> str:
    """Return words that suggest the known key that is most like this one; nothing where none is."""
    names = list(known)  # of several keys with the same last part the first one is meant
    by_name = {name.rpartition(".")[2]: name for name in reversed(names)} | {name: name for name in names}
    last = key.rpartition(".")[2]
    if last in by_name:
        return f"; did you mean {by_name[last]}?"
    import difflib  # where something is wrong alone: a device's memory is counted

    found = difflib.get_close_matches(key, by_name, 1, 0.75) or difflib.get_close_matches(last, by_name, 1, 0.6)
    return f"; did you mean {by_name[found[0]]}?" if found else ""


def _check(setting: Setting, value: object, source: str) -> None:
    """Raise ConfigInvalid unless the setting takes the value."""
    try:
        kinds.convert(value, setting.kind)
    except msgspec.ValidationError as exc:
        where = "" if " - at `$" not in str(exc) else f" ({exc})"
        shown = "its value" if setting.is_secret else f"{value!r:.60}"
        raise ConfigInvalid(f"{source}: {setting.key}: {shown} is not {setting.takes}{where}") from exc


def _at(tree: object, path: Iterable[str]) -> object:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _copied(tree: Tree) -> Tree:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in tree.items()}


def _tables(kind: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    for field in msgspec.structs.fields(kind):
        facts = kinds.type_of(field.type)
        if isinstance(facts, inspect.StructType):
            yield field.name, facts.cls


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
