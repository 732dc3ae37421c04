"""`python -m broker_server energy-report`: what a federation has cost in joules, and what was gained for it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from broker_server.report import energy_costs as costs
from broker_server.report import energy_plot, journals
from broker_server.report.journals import Journalled

JOURNAL = "energy.journal"
_RUN = f"devices/*/state/{JOURNAL}"
"""Where the devices of a run on one machine have theirs, each in a folder of its name."""

ReadJournal = Callable[[Path], Sequence[Journalled]]
"""The plans that a device's journal has figures of. Raises OSError."""


def add_arguments(report: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    report.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, the server's state, or report.json")
    report.add_argument(
        "--journal",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a device's state folder, for what it has spent and never reported; may be repeated",
    )
    report.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf")
    report.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, read_journal: ReadJournal) -> int:
    """Do what `add_arguments` parsed; the exit code. Raises ReportUnusable, PlotImpossible."""
    report = costs.read(args.folder)
    for device, path in _journals(args):
        report, said = journals.join(report, device, read_journal(path))
        for sentence in said:
            print(sentence, file=sys.stderr)
    found = costs.costs(report)
    print(msgspec.json.encode(found).decode() if args.json else costs.words(found))
    if args.plot is not None:
        energy_plot.costs(found, args.plot)
    return 0


def _journals(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Devices' names and journals: those that were named, and those of a run's folder. Raises ReportUnusable."""
    found = []
    for text in args.journal:
        device, _, place = text.partition("=")
        path = Path(place) / JOURNAL if Path(place).is_dir() else Path(place)
        if not device or not place or not path.is_file():
            raise costs.ReportUnusable(f"{text!r} is no device's journal: write NAME=FOLDER, the agent's state folder")
        found.append((device, path))
    named = {device for device, _ in found}
    own = [(path.parent.parent.name, path) for path in sorted(args.folder.glob(_RUN))]
    return found + [(device, path) for device, path in own if device not in named]
