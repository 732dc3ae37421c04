"""Devices' energy journals joined to the report: the energy of plans that the server has no report of.

A device journals a plan's energy until the next plan begins, and reports it to the server when the plan is over. A
device that was killed and never came back has not reported its last plan, or only a part of it. Where a journal has
more of a plan than the report, the report's sums take the journal's figures.
"""

# coverage: every branch

from collections.abc import Sequence

from msgspec.structs import replace

from broker_server.report.build import Report, RoundReport
from broker_server.report.energy import exchanged
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.messages import FinalEnergy


def join(report: Report, device: str, journal: Sequence[FinalEnergy]) -> tuple[Report, list[str]]:
    """Return the report with a device's journal counted, and a sentence for each plan that it has more of."""
    notes = []
    for entry in journal:
        plan = entry.energy
        if plan.energy_j is None:
            continue
        found = f"{device}, round {entry.round} ({entry.group}): {plan.energy_j:.1f} J in its journal"
        row = next((row for row in report.rounds if (row.round, row.group) == (entry.round, entry.group)), None)
        if row is None:
            notes.append(f"{found}, of a round that the report does not have: not counted")
            continue
        known = row.energy_by_device.get(device)
        if known is not None and known.energy_j is not None and known.seconds >= plan.seconds:
            continue
        reported = "nothing" if known is None or known.energy_j is None else f"{known.energy_j:.1f} J"
        notes.append(f"{found}, {reported} in the report: counted")
        report = _with(report, row, device, plan)
    return report, notes


def _with(report: Report, row: RoundReport, device: str, plan: Energy) -> Report:
    """Return the report with a device's plan in place of what its sums had of the plan."""
    before = [row.energy_by_device[device]] if device in row.energy_by_device else []
    new = replace(
        row,
        energy=exchanged(row.energy, before, plan),
        energy_by_device={**row.energy_by_device, device: plan},
    )
    groups = {
        name: exchanged(each, before, plan) if name == row.group else each
        for name, each in report.energy.groups.items()
    }
    energy = replace(report.energy, total=exchanged(report.energy.total, before, plan), groups=groups)
    return replace(report, rounds=[new if each is row else each for each in report.rounds], energy=energy)
