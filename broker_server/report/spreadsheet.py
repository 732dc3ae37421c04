"""The rounds of a report as CSV, for spreadsheets: a line for each round; an empty cell was not measured."""

# coverage: every branch

import csv
import io

from broker_server.report.build import Report


def spreadsheet(report: Report) -> str:
    """Return the lines, the first with the names of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    losses = [(kind, task) for kind in ("train_loss", "val_loss") for task in report.tasks]
    plain = ("round", "phase", "group")
    figures = ("wall_s", "bytes_up", "bytes_down", "peak_rss_bytes")
    energies = ("energy_j", "uncertainty_j", "estimated", "partial")
    writer.writerow([*plain, "devices", *(f"{kind}.{task}" for kind, task in losses), *figures, *energies])
    for row in report.rounds:
        writer.writerow(
            [
                *(_cell(getattr(row, name)) for name in plain),
                len(row.clients),
                *((getattr(row, kind) or {}).get(task, "") for kind, task in losses),
                *(_cell(getattr(row, name)) for name in figures),
                *(_cell(getattr(row.energy, name)) for name in energies),
            ]
        )
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a value without what a spreadsheet would take for a formula."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
