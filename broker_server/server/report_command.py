"""`python -m broker_server report [RUN]`: the report of a federation; `compare RUN RUN`: several side by side."""

import argparse
import contextlib
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker_server.report import build as reports
from broker_server.report import side_by_side
from broker_server.report.spreadsheet import spreadsheet
from broker_server.server import settings_command
from broker_server.server.serve import write_report
from broker_server.server.state import StateFolder, existing
from devices.cli.run import DONE
from edge_runtime.wire.files import write_atomic

REPORT = "report"
PAGE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a server's state folder, or a folder with a report.json, such as runs/demo (default: --state)",
    )
    settings_command.add_state(parser)
    parser.add_argument("--out", type=Path, default=None, help="the folder to write (default: report in the state)")
    parser.add_argument(
        "--format",
        choices=("html", "json", "csv"),
        default="html",
        help="html: write report.html, report.json and models/; json, csv: print the report, or its rounds as a table",
    )
    parser.add_argument("--open", action="store_true", help="show the page in the browser")


def run(options: argparse.Namespace) -> int:
    """Report; the exit code. Raises ReportImpossible, StateUnusable."""
    written = None if options.run is None else options.run / reports.REPORT
    if written is not None and written.is_file():
        report, page = reports.read(written), options.run / PAGE
        if options.format == "html" and not page.is_file():
            from broker_server.report import html  # its templates are slow to load, and needed here alone

            html.write(options.run, report)
    else:
        state = options.run or settings_command.settings(options).value.state
        folder = StateFolder(existing(state))
        with contextlib.closing(folder):
            journal, blobs = folder.open()
            with contextlib.closing(journal):
                report = reports.build(journal)
                if options.format == "html":
                    page = write_report(options.out or state / REPORT, journal, blobs)
    if options.format == "json":
        print(msgspec.json.encode(report).decode())
    elif options.format == "csv":
        print(spreadsheet(report), end="")
    else:
        print(page)
        if options.open:
            webbrowser.open(page.resolve().as_uri())
    return DONE


def are_reports(folders: Sequence[Path]) -> bool:
    """Return whether each folder has a report, and is no experiment's."""
    return all((folder / reports.REPORT).is_file() for folder in folders)


def compare(folders: Sequence[Path], out: Path) -> int:
    """Write comparison.html and comparison.json of the reports in `folders`. Raises ReportImpossible."""
    from broker_server.report import html  # its templates are slow to load, and needed here alone

    runs = [side_by_side.run(folder.name, reports.read(folder / reports.REPORT)) for folder in folders]
    write_atomic(out / "comparison.json", msgspec.json.format(msgspec.json.encode(runs), indent=1) + b"\n")
    write_atomic(out / "comparison.html", html.render_side_by_side(runs).encode())
    print(out / "comparison.html")
    return DONE
