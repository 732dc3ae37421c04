"""`python -m broker_server settings`: the settings in use and where each came from, their document and their schema.

Here is also what other commands have of the settings: their flags, and the values of a command line.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker_server.server.config import SETTINGS, TABLES, ServerConfig, read
from broker_server.server.old_keys import add_old_flags
from devices.cli.document import to_json, to_markdown, to_schema, to_toml
from devices.cli.run import DONE
from devices.cli.settings import Effective, Setting, add_flags, of_flags

DOCUMENT = """# Settings

Made by `python -m broker_server settings --document`, from the structs that the code uses. A value goes over its
default in a file, and over the file as a flag. `python -m broker_server settings` prints the values in use.
"""


def add_settings(parser: argparse.ArgumentParser, *, shown: bool | None = None) -> None:
    """Add the flags of server.toml: all shown, none, or, where `shown` is None, those that are common."""

    def is_shown(setting: Setting) -> bool:
        return setting.is_common if shown is None else shown

    parser.add_argument("--config", type=Path, help="server.toml; a flag goes over its key")
    add_flags(parser, SETTINGS, TABLES, is_shown=is_shown)
    add_old_flags(parser, SETTINGS)


def add_state(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add the flags by which a command finds the server's state folder, and those of the keys `more`."""
    parser.add_argument("--config", type=Path, help="server.toml")
    add_flags(parser, [each for each in SETTINGS if each.key in {"state", *more}])


def settings(options: argparse.Namespace) -> Effective[ServerConfig]:
    """Return the settings of a command line. Raises ConfigInvalid."""
    return read(options.config, of_flags(options, SETTINGS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="print value and source of each, by key, as JSON")
    kind.add_argument("--toml", action="store_true", help="print a file with all of them")
    kind.add_argument("--schema", action="store_true", help="print the JSON schema of server.toml")
    kind.add_argument("--document", action="store_true", help="print docs/settings.md")
    add_settings(parser)


def run(options: argparse.Namespace, others: Mapping[str, type[msgspec.Struct]]) -> int:
    """Do what the arguments ask; `others` are the document's further files. Raises ConfigInvalid."""
    if options.schema:
        print(json.dumps(to_schema(ServerConfig), indent=1))
    elif options.document:
        print(document(others), end="")
    else:
        found = settings(options)
        if options.json:
            print(json.dumps(to_json(found), indent=1))
        elif options.toml:
            print(to_toml(found), end="")
        else:
            _print(found)
    return DONE


def document(others: Mapping[str, type[msgspec.Struct]]) -> str:
    """Return docs/settings.md."""
    parts = [f"## server.toml\n\n{to_markdown(ServerConfig)}"]
    parts += [f"## {title}\n\n{to_markdown(kind, has_flags=False)}" for title, kind in others.items()]
    titles = re.findall(r"^#+ (.+)$", "\n".join(parts), re.MULTILINE)
    anchors = [re.sub(r"[^\w-]", "", title) for title in titles]  # as GitHub makes them
    contents = " · ".join(f"[{title.strip('[]')}](#{anchor})" for title, anchor in zip(titles, anchors, strict=True))
    return "\n".join([DOCUMENT, f"{contents}\n", *parts])


def _print(found: Effective[ServerConfig]) -> None:
    facts = to_json(found)
    width = max(map(len, facts))
    for key, fact in facts.items():
        print(f"{key:{width}}  {json.dumps(fact['value'], ensure_ascii=False)}  ({fact['source']})")
