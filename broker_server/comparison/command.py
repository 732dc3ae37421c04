"""`python -m broker_server compare`: tables and pictures of experiments that `simulate` has run, or is running.

OUT/comparison.json          every figure, with its interval
OUT/comparison.md            the tables
OUT/comparison.png           the picture; comparison-NAME.png where several experiments are compared
"""

import argparse
from pathlib import Path

import msgspec

from broker_server.comparison.comparison import Comparison, ComparisonImpossible
from broker_server.comparison.markdown import document
from broker_server.comparison.results import read_all, read_costs
from broker_server.simulation.experiment import read_experiment
from broker_server.simulation.fleet import WorkCosts
from broker_server.simulation.output import write_json
from edge_runtime.wire.files import write_atomic

JSON, MARKDOWN = "comparison.json", "comparison.md"


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """comparison.json."""

    experiments: list[Comparison]
    missing: list[str]
    costs: list[WorkCosts | None]
    """By folder: what simulated time and energy are reckoned from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.add_argument(
        "folder", type=Path, nargs="+", help="what `simulate --out` has filled, or folders with a report.json each"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for comparison.json, comparison.md and pictures"
    )
    parser.add_argument("--experiment", type=Path, help="names, order, seeds and sections from this experiment.toml")


def run(args: argparse.Namespace) -> int:
    """Compare. Raises ComparisonImpossible, ConfigInvalid; OSError as the file system does."""
    outline = None if args.experiment is None else read_experiment(args.experiment).outline(args.experiment.stem)
    found = read_all(args.folder, outline)
    costs = [read_costs(folder) for folder in args.folder]
    pictures = {each.name: args.out / _picture(each, len(found)) for each in found}
    try:
        from broker_server.comparison import plot  # matplotlib is slow to import

        for each in found:
            write_atomic(pictures[each.name], plot.draw(each))
    except ImportError as exc:
        raise ComparisonImpossible("matplotlib is not installed: pip install '.[server]'") from exc
    missing = [run for each in found for run in each.missing]
    write_json(args.out / JSON, _File(experiments=found, missing=missing, costs=costs))
    write_atomic(args.out / MARKDOWN, document([(each, pictures[each.name].name) for each in found]).encode())
    for each in found:
        if each.missing:
            print(f"{each.title}: not finished, and left out: {', '.join(each.missing)}")
    print(args.out / MARKDOWN)
    return 0


def _picture(comparison: Comparison, experiments: int) -> str:
    return "comparison.png" if experiments == 1 else f"comparison-{comparison.name}.png"
