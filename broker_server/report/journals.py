"""What devices' journals know that the server does not: plans that a device was cut off in, or never reported.

A device journals what a plan costs until the next plan begins, and tells the server when it is over. One that was
killed and never came back has told nothing of its last plan, or what was known before the end of it. Where a journal
has more of a plan than the report, the report's sums take the journal's figures.
"""

# coverage: every branch

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from broker_server.report.energy_costs import Part, Plan, Report, Round, Sum


class Journalled(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's figures in a device's journal."""

    round: int
    group: str
    plan: Plan


def join(report: Report, device: str, journal: Sequence[Journalled]) -> tuple[Report, list[str]]:
    """The report with what a device's journal has besides, and a sentence about each of its plans that matters."""
    said = []
    for entry in journal:
        if entry.plan.energy_j is None:
            continue
        about = f"{device}, round {entry.round} ({entry.group}): {entry.plan.energy_j:.1f} J in its journal"
        row = next((row for row in report.rounds if (row.round, row.group) == (entry.round, entry.group)), None)
        if row is None:
            said.append(f"{about}, of a round that the report does not have: not counted")
            continue
        known = row.energy_by_device.get(device)
        if known is not None and known.energy_j is not None and known.seconds >= entry.plan.seconds:
            continue
        told = "nothing" if known is None or known.energy_j is None else f"{known.energy_j:.1f} J"
        said.append(f"{about}, {told} in the report: counted")
        report = _with(report, row, device, entry.plan)
    return report, said


def _with(report: Report, row: Round, device: str, plan: Plan) -> Report:
    known, is_new = row.energy_by_device.get(device), device not in row.energy_by_device
    energies = report.energy
    new = replace(
        row,
        energy=_added(row.energy, known, plan, is_new=is_new),
        energy_by_device={**row.energy_by_device, device: plan},
    )
    groups = {
        name: _added(each, known, plan, is_new=is_new) if name == row.group else each
        for name, each in energies.groups.items()
    }
    total = _added(energies.total, known, plan, is_new=is_new)
    rounds = [new if each is row else each for each in report.rounds]
    return replace(report, rounds=rounds, energy=replace(energies, total=total, groups=groups))


def _added(whole: Sum, known: Plan | None, plan: Plan, *, is_new: bool) -> Sum:
    """A sum with a plan's figures in place of what it had of it."""
    was_measured = known is not None and known.energy_j is not None
    phases = dict(whole.phases)
    before = {} if known is None else known.phases
    for name in {**plan.phases, **before}:
        old, now = before.get(name, _NOTHING), plan.phases.get(name, _NOTHING)
        part = phases.get(name, _NOTHING)
        phases[name] = Part(
            seconds=part.seconds - old.seconds + now.seconds,
            energy_j=_changed(part.energy_j, old.energy_j, now.energy_j),
        )
    above = whole.above_idle_j
    return replace(
        whole,
        energy_j=_changed(whole.energy_j, None if known is None else known.energy_j, plan.energy_j),
        uncertainty_j=_changed(whole.uncertainty_j, None if known is None else known.uncertainty_j, plan.uncertainty_j),
        above_idle_j=None
        if (whole.measured and above is None) or plan.above_idle_j is None
        else _changed(above, None if known is None else known.above_idle_j, plan.above_idle_j),
        estimated=whole.estimated or plan.estimated,
        measured=whole.measured + (not was_measured),
        plans=whole.plans + is_new,
        phases=phases,
    )


_NOTHING = Part(seconds=0.0, energy_j=None)


def _changed(whole: float | None, old: float | None, new: float | None) -> float | None:
    """A sum without the old part and with the new one; None is what was not measured."""
    if new is None and (whole is None or old is None):
        return whole
    return (whole or 0.0) - (old or 0.0) + (new or 0.0)
