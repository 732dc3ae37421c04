"""The command `datasets`: make data sets of Taskonomy's files and of tables, and check data sets.

Exit codes: 0 done, 2 the command line is wrong or asks for what the data cannot give, 3 the data is missing or damaged.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec

from devices.cli.run import BAD_INPUT, DONE, UsageError
from devices.cli.run import run as run_command
from devices.cli.values import names, whole_number
from edge_runtime.datasets.dataset import Dataset, DatasetInvalid
from edge_runtime.datasets.feature_sets import BUNDLE, DEVICES, divided, pooled, standardised, write
from edge_runtime.datasets.feature_sources import SOURCES
from edge_runtime.datasets.fit import check_fits
from edge_runtime.datasets.partition import Fractions
from edge_runtime.datasets.progress import progress
from edge_runtime.datasets.summary import summary
from edge_runtime.datasets.table import TableSettings, columns, import_tables
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.errors import WireError
from edge_runtime.wire.linear import OF_CLASSES, LossName

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

    table = commands.add_parser("table", help="make a data set of tables (CSV): of their rows, or of windows of rows")
    table.add_argument("files", type=Path, nargs="+", metavar="FILE.csv", help="tables with the same head line")
    table.add_argument("--out", type=Path, required=True, help="data set folder to write")
    arrays = {
        "input": ("columns of values that go into the model", False),
        "tokens": ("columns of integers that go into the model", True),
        "task": ("columns of values to predict", False),
        "classes": ("a column of classes to predict, 0 and up", True),
    }
    for name, (what, integers) in arrays.items():
        kind = partial(columns, integers=integers)
        kind.__name__ = "name=column,column"  # type: ignore[attr-defined]
        more = {"action": "append", "default": [], "metavar": "NAME=A,B"}
        table.add_argument(f"--{name}", type=kind, help=f"{what}; may be repeated", **more)  # type: ignore[arg-type]
    table.add_argument("--window", type=whole_number(1), help="rows of a sample (default: each row is one)")
    table.add_argument(
        "--ahead", type=whole_number(0), default=0, help="rows from a window's last to that of its labels (default 0)"
    )
    table.add_argument("--stride", type=whole_number(1), default=1, help="rows from window to window (default 1)")
    table.add_argument("--val", type=float, default=0.15, help="share of the validation set, or 0 (default 0.15)")
    table.add_argument("--test", type=float, default=0.15, help="share of the test set, or 0 (default 0.15)")
    table.add_argument("--seed", type=int, default=0, help="of the distribution of single rows (default 0)")
    table.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")

    _add_features(commands)

    checks = commands.add_parser("check", help="say what a data set's labels are, and whether they fit a bundle")
    checks.add_argument("data", type=Path, metavar="DATA", help="data set folder")
    checks.add_argument("--bundle", type=Path, help="hold shapes, types and all labels to this bundle's tasks")
    checks.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")


def _add_features(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    tables = commands.add_parser(
        "features", help="make data sets of features for linear models, one for each device, and their bundle"
    )
    about = "; ".join(f"{name}: {source.about}" for name, source in SOURCES.items())
    tables.add_argument("kind", choices=[*SOURCES], help=about)
    tables.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="the data's file; related and values need none"
    )
    tables.add_argument("--out", type=Path, required=True, help="folder for devices/NAME and bundle")
    tables.add_argument("--loss", choices=get_args(LossName), help="the model's loss (default: the kind's own)")
    tables.add_argument("--positive", type=int, default=3, help="with har: the activity to tell (default 3, sitting)")
    tables.add_argument("--pooled", action="store_true", help="all devices' samples as one device's, to compare with")
    tables.add_argument("--val", type=float, default=0.0, help="share of the validation set (default 0)")
    tables.add_argument("--test", type=float, default=0.25, help="share of the test set (default 0.25)")
    tables.add_argument("--seed", type=int, default=0, help="the same seed gives the same sets (default 0)")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit code."""
    faults: dict[type[Exception], int] = {DatasetInvalid: BAD_INPUT, WireError: BAD_INPUT, OSError: BAD_INPUT}
    commands = {"check": _check, "features": _features, "import": _with_extra, "table": _table}
    return run_command(partial(commands[args.datasets_command], args), faults)


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


def _table(args: argparse.Namespace) -> int:
    settings = TableSettings(
        inputs=dict([*args.input, *args.tokens]),
        tasks=dict([*args.task, *args.classes]),
        window=args.window,
        ahead=args.ahead,
        stride=args.stride,
        fractions=Fractions(val=args.val, test=args.test),
        seed=args.seed,
    )
    done = import_tables(args.files, args.out, settings)
    if args.json:
        _print_json({"folder": str(args.out), "counts": done.counts, "left_out": done.left_out})
        return DONE
    counts = ", ".join(f"{count} {name}" for name, count in done.counts.items())
    print(f"{args.out}: {counts}; {', '.join((*settings.inputs, *settings.tasks))}")
    if done.left_out:
        print(f"{done.left_out} samples were left out: a value of an input, or a class, is missing there")
    return DONE


def _features(args: argparse.Namespace) -> int:
    source = SOURCES[args.kind]
    loss = args.loss or source.loss
    if (loss in OF_CLASSES) != (source.loss in OF_CLASSES):
        raise UsageError(f"--loss: {loss} is not for the labels of {args.kind}: take {source.loss}")
    tables = source.read(args.file, args.positive, args.seed)
    devices = divided(tables, Fractions(val=args.val, test=args.test), args.seed)
    if source.standardised:
        devices = standardised(devices)
    if args.pooled:
        devices = pooled(devices)
    write(args.out, args.kind, source, devices, loss)
    x, _ = next(iter(devices.values()))["train"]
    print(f"{args.out / DEVICES}: {len(devices)} data sets of {x.shape[1]} features for {source.task}")
    print(f"{args.out / BUNDLE}: a linear model with the loss {loss}")
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
