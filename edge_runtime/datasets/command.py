"""The command `datasets`: render rooms, and make data sets of Taskonomy's files.

Exit codes: 0 done, 2 it was asked for something that makes no sense, 3 the data is missing or damaged.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from edge_runtime.datasets.dataset import DatasetInvalid

DONE, USAGE, BAD_DATA = 0, 2, 3
# Boards do without the packages that only the making of data sets needs.
EXTRA = {"PIL", "rich"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their options."""
    commands = parser.add_subparsers(dest="datasets_command", required=True, metavar="COMMAND")

    rooms = commands.add_parser("rooms", help="render indoor scenes with labels for nine tasks, in Taskonomy's form")
    rooms.add_argument("--out", type=Path, required=True, help="folder to write a folder for each building in")
    rooms.add_argument("--buildings", type=int, default=4, help="buildings, each of its own style (default 4)")
    rooms.add_argument("--images", type=int, default=200, help="views of each building (default 200)")
    rooms.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    rooms.add_argument("--seed", type=int, default=0, help="the same seed draws the same rooms (default 0)")
    rooms.add_argument("--processes", type=int, choices=(1, 2), default=2, help="processes to draw with (default 2)")
    rooms.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")

    imports = commands.add_parser("import", help="make a data set of each building in Taskonomy's form")
    imports.add_argument("source", type=Path, metavar="SRC", help="folder with the buildings' files")
    imports.add_argument("--out", type=Path, required=True, help="folder to write a data set for each building in")
    imports.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    imports.add_argument("--crops", type=int, help="cut each view into so many crops (default: resize whole views)")
    imports.add_argument("--tasks", help="tasks, with commas (default: all that every view has the domains for)")
    imports.add_argument("--val", type=float, default=0.15, help="share of the validation set, or 0 (default 0.15)")
    imports.add_argument("--test", type=float, default=0.15, help="share of the test set, or 0 (default 0.15)")
    imports.add_argument("--seed", type=int, default=0, help="the same seed gives the same sets (default 0)")
    imports.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Do what `add_arguments` parsed; the exit code."""
    try:
        return _rooms(args) if args.datasets_command == "rooms" else _import(args)
    except ModuleNotFoundError as exc:
        if exc.name not in EXTRA:
            raise
        print("data sets are made with pillow and rich: pip install '.[datasets]'", file=sys.stderr)
        return USAGE
    except DatasetInvalid as exc:
        print(exc, file=sys.stderr)
        return BAD_DATA
    except OSError as exc:
        print(f"{exc.filename}: {exc.strerror}", file=sys.stderr)
        return BAD_DATA


def _rooms(args: argparse.Namespace) -> int:
    from edge_runtime.datasets.rooms.building import RoomsInvalid, Settings, draw_buildings

    settings = Settings(buildings=args.buildings, images=args.images, size=args.size, seed=args.seed)
    try:
        with _progress(quiet=args.json) as bar:
            drawn = draw_buildings(
                args.out,
                settings,
                processes=args.processes,
                report=lambda done, total: bar.show("rooms", done, total),
            )
    except RoomsInvalid as exc:
        print(exc, file=sys.stderr)
        return USAGE
    if args.json:
        _print_json({"folders": [str(folder) for folder in drawn.folders], "images": args.images, "new": drawn.new})
    else:
        there = args.buildings * args.images - drawn.new
        print(f"{drawn.new} views drawn, {there} were there: {args.buildings} buildings in {args.out}")
    return DONE


def _import(args: argparse.Namespace) -> int:
    from edge_runtime.datasets.importer import Settings, SettingsInvalid, import_folder
    from edge_runtime.datasets.partition import Fractions, PartitionImpossible

    tasks = None if args.tasks is None else tuple(task.strip() for task in args.tasks.split(",") if task.strip())
    try:
        settings = Settings(
            size=args.size,
            crops=args.crops,
            tasks=tasks,
            fractions=Fractions(val=args.val, test=args.test),
            seed=args.seed,
        )
        with _progress(quiet=args.json) as bar:
            done = import_folder(args.source, args.out, settings, bar.show)
    except (SettingsInvalid, PartitionImpossible) as exc:
        print(exc, file=sys.stderr)
        return USAGE
    if args.json:
        _print_json(
            {
                "datasets": [
                    {"building": one.building, "folder": str(one.folder), "tasks": one.tasks, "counts": one.counts}
                    for one in done
                ]
            }
        )
    else:
        for one in done:
            counts = ", ".join(f"{count} {name}" for name, count in one.counts.items())
            print(f"{one.folder}: {counts}; {', '.join(one.tasks)}")
    return DONE


def _print_json(summary: dict[str, object]) -> None:
    print(msgspec.json.encode(summary).decode())


class _Bar(Protocol):
    """Where progress is shown: a terminal, or nowhere."""

    def show(self, what: str, done: int, total: int) -> None:
        """So much of something is done."""
        ...


class _Silent:
    def show(self, what: str, done: int, total: int) -> None:
        """Show nothing."""


@contextmanager
def _progress(*, quiet: bool) -> Iterator[_Bar]:
    """Bars on the terminal, if standard error is one."""
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    class Bars:
        def __init__(self, progress: Progress) -> None:
            self.progress = progress
            self.bars: dict[str, TaskID] = {}

        def show(self, what: str, done: int, total: int) -> None:
            if what not in self.bars:
                self.bars[what] = self.progress.add_task(what, total=total)
            self.progress.update(self.bars[what], completed=done)

    with Progress(console=Console(stderr=True)) as progress:
        yield Bars(progress)
