"""Settings for people and other programs: as a file, as JSON, as tables of a document, and as a JSON schema."""

# coverage: every branch

from collections.abc import Iterable
from typing import Any

import msgspec

from devices.cli.settings import Effective, by_table, settings_of, tables_of


def to_toml(effective: Effective[Any]) -> str:
    """Return the settings as a file, each with where it came from; keys without a value are left out."""
    lines: list[str] = []
    for table, settings in by_table(settings_of(type(effective.value))).items():
        lines += ["", f"[{table}]"] if table else []
        for each in settings:
            value = _value(effective.value, each.path)
            if value is not None:
                lines.append(f"{each.path[-1]} = {_toml(value)}  # {effective.sources[each.key]}")
    return "\n".join([*lines, ""])


def to_json(effective: Effective[Any]) -> dict[str, dict[str, object]]:
    """Return each setting's value and where it came from, by key."""
    return {
        key: {"value": _value(effective.value, key.split(".")), "source": source}
        for key, source in effective.sources.items()
    }


def to_markdown(kind: type[msgspec.Struct], *, has_flags: bool = True) -> str:
    """Return the settings as tables of a document, one for each table of the file."""
    about = tables_of(kind)
    columns = ["key", *(["flag"] if has_flags else []), "meaning", "unit", "values", "default"]
    parts: list[str] = []
    for table, settings in by_table(settings_of(kind)).items():
        parts += [f"### [{table}]", "", f"{about[table]}", ""] if table else []
        parts += [_row(columns), _row(["---"] * len(columns))]
        for each in settings:
            default = "required" if each.is_required else f"`{each.default_text}`" if each.default_text else ""
            flag = [f"`{each.flag}`"] if has_flags else []
            parts.append(_row([f"`{each.path[-1]}`", *flag, each.sentence, each.unit, each.takes, default]))
        parts.append("")
    return "\n".join(parts)


def to_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON schema of a file of settings."""
    about = tables_of(kind)
    schema = _table("settings")
    for each in settings_of(kind):
        node = schema
        for depth, name in enumerate(each.path[:-1], 1):
            node = node["properties"].setdefault(name, _table(about[".".join(each.path[:depth])]))
        leaf = msgspec.json.schema(each.kind, schema_hook=lambda _: {"type": "string"})
        if each.is_required:
            node.setdefault("required", []).append(each.path[-1])
        else:
            leaf["default"] = msgspec.to_builtins(each.default, enc_hook=str)
        node["properties"][each.path[-1]] = leaf
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _table(about: str) -> dict[str, Any]:
    return {"type": "object", "description": about, "additionalProperties": False, "properties": {}}


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value(struct: object, path: Iterable[str]) -> object:
    value = struct
    for name in path:
        value = getattr(value, name)
    return msgspec.to_builtins(value, enc_hook=str)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return msgspec.json.encode(value).decode()
