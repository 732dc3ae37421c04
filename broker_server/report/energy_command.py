"""`python -m broker_server energy-report`: the energy of a federation, and the test loss gained for it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from broker_server.report import energy_costs, journals
from broker_server.report.build import ReportImpossible
from edge_runtime.wire.messages import FinalEnergy

JOURNAL = "energy.journal"
_RUN = f"devices/*/state/{JOURNAL}"
"""The journals of devices on the server's machine, each in a folder of the device's name."""

ReadJournal = Callable[[Path], Sequence[FinalEnergy]]
"""Returns the energy of each plan in a device's journal. Raises OSError."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, the server's state, or report.json")
    parser.add_argument(
        "--journal",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a device's state folder, for energy that it never reported; may be repeated",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, read_journal: ReadJournal) -> int:
    """Run the command and return its exit code. Raises ReportImpossible."""
    report = energy_costs.read(args.folder)
    for device, path in _journals(args):
        report, notes = journals.join(report, device, read_journal(path))
        for sentence in notes:
            print(sentence, file=sys.stderr)
    found = energy_costs.break_down(report)
    print(msgspec.json.encode(found).decode() if args.json else energy_costs.words(found))
    if args.plot is not None:
        from broker_server.report import energy_plot  # matplotlib is slow to import

        energy_plot.draw(found, args.plot)
    return 0


def _journals(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Return devices' names and journals: the ones named, and those of a run's folder. Raises ReportImpossible."""
    found = []
    for text in args.journal:
        device, _, place = text.partition("=")
        path = Path(place) / JOURNAL if Path(place).is_dir() else Path(place)
        if not device or not place or not path.is_file():
            raise ReportImpossible(f"{text!r} is no device's journal: write NAME=FOLDER, with the agent's state folder")
        found.append((device, path))
    named = {device for device, _ in found}
    own = [(path.parent.parent.name, path) for path in sorted(args.folder.glob(_RUN))]
    return found + [(device, path) for device, path in own if device not in named]
