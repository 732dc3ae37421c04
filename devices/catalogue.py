"""`python -m devices list|show|detect`: the known boards, one board's facts, and the board that runs the command."""

import argparse
import shlex
from pathlib import Path

import msgspec

from devices.detection import Detected, detect
from devices.meters import discover
from devices.profile import Facts, Profile, load, load_all

_UNITS = {"_mib": "MiB", "_w": "W", "_c": "°C"}
_NOT_STATED = "not stated"


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands `list`, `show` and `detect`."""
    one = commands.add_parser("list", help="list the known boards")
    one.set_defaults(run=_list)
    one = commands.add_parser("show", help="print a board's facts, each with its source")
    one.add_argument("board", metavar="BOARD", help="a name that `list` prints")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(run=_show)
    one = commands.add_parser("detect", help="print which board this is")
    one.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="another system's root folder")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(run=_detect)


def table(profiles: tuple[Profile, ...]) -> str:
    """Return a line for each board: its name, title and systems."""
    width = max(len(profile.name) for profile in profiles)
    return "\n".join(
        f"{profile.name:{width}}  {profile.title} ({', '.join(system.name for system in profile.systems)})"
        for profile in profiles
    )


def description(profile: Profile) -> str:
    """Return a board's facts, in words."""
    lines = [f"{profile.name}: {profile.title}, {profile.architecture}"]
    for name in Facts.__struct_fields__:
        fact = getattr(profile.facts, name)
        value = _NOT_STATED if fact is None else f"{_words(name, fact.value)} ({profile.sources[fact.source]})"
        lines.append(f"  {_title(name)}: {value}")
    lines += [
        f"  system {system.name}: {system.title}; Python {system.python}, glibc {system.glibc}, first boot by "
        f"{system.first_boot} ({profile.sources[system.source]})"
        for system in profile.systems
    ]
    if profile.flash is not None:
        lines.append(f"  flashed by: {shlex.join(profile.flash.command)} ({profile.sources[profile.flash.source]})")
    return "\n".join(lines)


def detected_words(board: Detected, meter: str, others: tuple[str, ...] = ()) -> str:
    """Return a detected board and its meter, in words. `others` are sensors that are no meter of the board."""
    profile = board.profile
    kind = (
        f"an unknown board: {board.machine} is not supported" if profile is None else f"{profile.name}: {profile.title}"
    )
    lines = [
        kind,
        f"  model: {board.model or _NOT_STATED}",
        f"  memory: {_NOT_STATED if board.memory_mib is None else f'{board.memory_mib} MiB'}",
        f"  cores: {board.cores or _NOT_STATED}",
        f"  system: {board.system or _NOT_STATED}, {board.machine}",
        f"  Python: {board.python or _NOT_STATED}",
        f"  meter: {meter}",
    ]
    if others:
        lines.append(f"  other sensors: {', '.join(others)}")
    if board.compatible:
        lines.insert(2, f"  device tree: {', '.join(board.compatible)}")
    return "\n".join(lines)


def _title(name: str) -> str:
    return name.rsplit("_", 1)[0].replace("_", " ") if name.endswith(tuple(_UNITS)) else name


def _words(name: str, value: object) -> str:
    unit = next((f" {unit}" for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    if isinstance(value, tuple):
        return f"{' or '.join(map(_plain, value)) if unit or name == 'cores' else ', '.join(map(_plain, value))}{unit}"
    return f"{_plain(value)}{unit}"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(_args: argparse.Namespace) -> int:
    print(table(load_all()))
    return 0


def _show(args: argparse.Namespace) -> int:
    profile = load(args.board)
    print(msgspec.json.encode(profile).decode() if args.json else description(profile))
    return 0


def _detect(args: argparse.Namespace) -> int:
    """Print the detected board; the exit code is 0 for an unknown board too."""
    board = detect(load_all(), args.root)
    meters = discover(args.root)
    source = None if meters.meter is None else meters.meter.facts.source
    covers = None if meters.meter is None else meters.meter.facts.covers
    if meters.meter is not None:
        meters.meter.close()
    if args.json:
        answer = {**msgspec.to_builtins(board), "profile": board.profile and board.profile.name, "meter": source}
        reasons = {"meter_covers": covers, "meter_reasons": meters.reasons, "other_sensors": meters.others}
        print(msgspec.json.encode({**answer, **reasons}).decode())
    else:
        meter = f"none ({'; '.join(meters.reasons)})" if source is None else f"{source} ({covers})"
        print(detected_words(board, meter, meters.others))
    return 0
