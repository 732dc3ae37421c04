"""The energy of a federation, out of its report.json: joules by group, phase and task, and for the test loss gained.

A group's energy serves all its tasks at once. By task it is divided evenly: that is bookkeeping, not measurement. The
gain is in test loss: before the federation, after the merged rounds, at the end. A group that trains in the merged
rounds gains from the first to the second of these, any other from the second to the last.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker_server.report import build
from broker_server.report.build import REPORT, Report, ReportImpossible, RoundReport
from broker_server.report.energy import EnergySum
from edge_runtime.wire.energy import Phase

MERGE = "merge"
"""The phase of a federation that trains all tasks merged; the rounds after it are the split's."""
_FOLDERS = (".", "report", "state/report", "server/report")
"""The folders of a run that may hold its report."""


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """The test loss before and after a stage, and the joules for each point of it; None: not measured, or no gain.

    `stage` names a stage, a group or a task.
    """

    stage: str
    loss_before: float | None
    loss_after: float | None
    energy_j: float | None
    j_per_point: float | None


class EnergyBreakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Energy in joules by group, by phase (over all groups) and by task, and for the test loss gained."""

    total: EnergySum
    groups: dict[str, EnergySum]
    phases: dict[Phase, float]
    tasks: dict[str, float]
    """Each group's energy, divided evenly among its tasks."""
    gains: tuple[Gain, ...]
    """By stage: merge, split, all."""
    group_gains: dict[str, Gain]
    task_gains: dict[str, Gain]
    rounds: list[RoundReport]


def read(folder: Path) -> Report:
    """Return the report of a run: its folder, the server's state folder, or the file. Raises ReportImpossible."""
    places = [folder] if folder.is_file() else [folder / place / REPORT for place in _FOLDERS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ReportImpossible(f"{folder} has no {REPORT}: `python -m broker_server report` writes one")
    return build.read(path)


def break_down(report: Report) -> EnergyBreakdown:
    """Return the energy of a report by group, phase and task, and for the test loss gained."""
    groups = report.energy.groups
    phases: dict[Phase, float] = {}
    tasks: dict[str, float] = {}
    gained: dict[str, Gain] = {}
    merged = {row.group for row in report.rounds if row.phase == MERGE}
    for name, found in groups.items():
        for phase, part in found.phases.items():
            if part.energy_j is not None:
                phases[phase] = phases.get(phase, 0.0) + part.energy_j
        members = [task for task in report.tasks if task in _tasks(name)]
        for task in members:
            if found.energy_j is not None:
                tasks[task] = tasks.get(task, 0.0) + found.energy_j / len(members)
        before, after = ("before", "merged") if name in merged else ("merged", "end")
        gained[name] = _gain(report, name, before, after, found.energy_j, members)
    last = "end" if report.test_loss.get("end") else "merged"
    by_task = {task: _gain(report, task, "before", last, tasks.get(task), [task]) for task in report.tasks}
    whole = ["total"]
    merge = [row.energy.energy_j for row in report.rounds if row.phase == MERGE]
    later = [row.energy.energy_j for row in report.rounds if row.phase != MERGE]
    stages = [(MERGE, "before", "merged", merge), ("split", "merged", "end", later)]
    gains = [_gain(report, stage, a, b, _sum(parts), whole) for stage, a, b, parts in stages if parts]
    gains.append(_gain(report, "all", "before", last, report.energy.total.energy_j, whole))
    return EnergyBreakdown(
        total=report.energy.total,
        groups=groups,
        phases=phases,
        tasks=tasks,
        gains=tuple(gains),
        group_gains=gained,
        task_gains=by_task,
        rounds=report.rounds,
    )


def words(found: EnergyBreakdown) -> str:
    """Return the breakdown for people."""
    whole = found.total
    lines = [f"in all {_joules(whole.energy_j)}{_notes(whole)}"]
    if whole.above_idle_j is not None:
        lines.append(f"  above the idle boards {_joules(whole.above_idle_j)}")
    lines += ["by group", *(f"  {name}: {_joules(each.energy_j)}{_notes(each)}" for name, each in found.groups.items())]
    lines += ["by phase", *(f"  {name}: {_joules(each)}" for name, each in found.phases.items())]
    lines.append("by task, each group's divided evenly")
    lines += [f"  {name}: {_joules(each)}" for name, each in found.tasks.items()]
    for title, gains in (
        ("", found.gains),
        (" by group", found.group_gains.values()),
        (" by task", found.task_gains.values()),
    ):
        lines.append(f"for each point of test loss gained{title}")
        lines += [_line(gain) for gain in gains]
    return "\n".join(lines)


def _line(gain: Gain) -> str:
    losses = " → ".join("?" if loss is None else f"{loss:.4f}" for loss in (gain.loss_before, gain.loss_after))
    price = "no price" if gain.j_per_point is None else _joules(gain.j_per_point)
    return f"  {gain.stage}: {price} ({losses}, {_joules(gain.energy_j)})"


def _gain(report: Report, stage: str, before: str, after: str, energy_j: float | None, names: Sequence[str]) -> Gain:
    """Return the gain in the sum of some of the report's test losses."""
    losses = []
    for point in (before, after):
        known = report.test_loss.get(point) or {}
        losses.append(sum(known[name] for name in names) if names and all(name in known for name in names) else None)
    gained = None if losses[0] is None or losses[1] is None else losses[0] - losses[1]
    per_point = energy_j / gained if energy_j is not None and gained is not None and gained > 0 else None
    return Gain(stage=stage, loss_before=losses[0], loss_after=losses[1], energy_j=energy_j, j_per_point=per_point)


def _tasks(group: str) -> set[str]:
    """Return the tasks that name a group; those that are left where the name was cut."""
    return set(group.split("++", 1)[0].split("+"))


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _joules(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f} J"


def _notes(found: EnergySum) -> str:
    notes = [f"{found.measured} of {found.plans} plans measured"] if found.measured < found.plans else []
    if found.uncertainty_j is not None:
        notes.insert(0, f"± {found.uncertainty_j:.1f} J")
    if found.estimated:
        notes.append("estimated in part")
    return f" ({', '.join(notes)})" if notes else ""
