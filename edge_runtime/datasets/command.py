"""The command `datasets`: make data sets of Taskonomy's files, and check data sets.

Exit codes: 0 done, 2 the command line is wrong or asks for what the data cannot give, 3 the data is missing or damaged.
"""

import argparse
from functools import partial
from pathlib import Path

import msgspec

from devices.cli.run import BAD_INPUT, DONE, UsageError
from devices.cli.run import run as run_command
from devices.cli.values import names
from edge_runtime.datasets.dataset import Dataset, DatasetInvalid
from edge_runtime.datasets.fit import check_fits
from edge_runtime.datasets.progress import progress
from edge_runtime.datasets.summary import summary
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.errors import WireError

# Boards do without the packages that only the making of data sets needs.
EXTRA = {"PIL", "rich"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their options."""
    commands = parser.add_subparsers(dest="datasets_command", required=True, metavar="COMMAND")

    imports = commands.add_parser("import", help="make a data set of each building in Taskonomy's form")
    imports.add_argument("source", type=Path, metavar="SRC", help="folder with the buildings' files")
    imports.add_argument("--out", type=Path, required=True, help="folder to write a data set for each building in")
    imports.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    imports.add_argument("--crops", type=int, help="cut this many crops out of each view (default: resize whole views)")
    imports.add_argument("--tasks", type=names, help="tasks, with commas (default: all that every view has)")
    imports.add_argument("--val", type=float, default=0.15, help="share of the validation set, or 0 (default 0.15)")
    imports.add_argument("--test", type=float, default=0.15, help="share of the test set, or 0 (default 0.15)")
    imports.add_argument("--seed", type=int, default=0, help="the same seed gives the same sets (default 0)")
    imports.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")

    checks = commands.add_parser("check", help="say what a data set's labels are, and whether they fit a bundle")
    checks.add_argument("data", type=Path, metavar="DATA", help="data set folder")
    checks.add_argument("--bundle", type=Path, help="hold shapes, types and all labels to this bundle's tasks")
    checks.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit code."""
    faults: dict[type[Exception], int] = {DatasetInvalid: BAD_INPUT, WireError: BAD_INPUT, OSError: BAD_INPUT}
    return run_command(partial(_check if args.datasets_command == "check" else _with_extra, args), faults)


def _check(args: argparse.Namespace) -> int:
    dataset = Dataset.open(args.data)
    there = {name: split for name, split in dataset.splits.items() if split is not None}
    found = {name: {task: summary(split, task) for task in split.tasks} for name, split in there.items()}
    if args.json:
        print(msgspec.json.encode({"samples": {name: len(there[name]) for name in there}, "labels": found}).decode())
    else:
        for name, split in there.items():
            inputs = (f"{each} {array.shape[1:]}, {array.dtype}" for each, array in split.inputs.items())
            print(f"{name}: {len(split)} samples of {'; '.join(inputs)}")
            for task, one in found[name].items():
                print(f"  {task}: {one.text()}")
    if args.bundle is not None:
        manifest = read_folder(args.bundle)
        for split in there.values():
            check_fits(manifest, split)
    return DONE


def _with_extra(args: argparse.Namespace) -> int:
    try:
        return _import(args)
    except ModuleNotFoundError as exc:
        if exc.name not in EXTRA:
            raise
        raise UsageError("data sets are made with pillow and rich: pip install '.[datasets]'") from exc


def _import(args: argparse.Namespace) -> int:
    from edge_runtime.datasets.importer import ImportSettings, import_folder
    from edge_runtime.datasets.partition import Fractions

    settings = ImportSettings(
        size=args.size,
        crops=args.crops,
        tasks=args.tasks,
        fractions=Fractions(val=args.val, test=args.test),
        seed=args.seed,
    )
    with progress(quiet=args.json) as bar:
        done = import_folder(args.source, args.out, settings, bar.show)
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
