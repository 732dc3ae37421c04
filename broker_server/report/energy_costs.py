"""What a federation has cost, out of its report.json: joules by group, phase and task, and for what was gained.

A group's energy serves all its tasks at once. By task it is divided evenly: that is bookkeeping, not measurement. What
was gained is test loss: before the federation, after the merged rounds, at the end. A group that trains in the merged
rounds gains from the first to the second of these, any other from the second to the last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

MERGE = "merge"
"""The phase of a federation that trains all tasks merged; what comes after it is the split's."""
MAX_REPORT_BYTES = 256 << 20
_PLACES = ("report.json", "report/report.json", "state/report/report.json", "server/report/report.json")


class ReportUnusable(ValueError):
    """There is no report of a federation there, or it cannot be read; the sentence says why."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One phase's sum."""

    seconds: float
    energy_j: float | None


class Sum(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of some plans: `measured` of `plans` are in it."""

    energy_j: float | None
    estimated: bool
    uncertainty_j: float | None
    above_idle_j: float | None
    measured: int
    plans: int
    phases: dict[str, Part]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part in a round."""

    energy_j: float | None
    uncertainty_j: float | None
    estimated: bool
    idle_w: float | None
    seconds: float
    phases: dict[str, Part]

    @property
    def above_idle_j(self) -> float | None:
        """Without the idle board's power over the same time; None without a baseline."""
        return None if self.energy_j is None or self.idle_w is None else self.energy_j - self.idle_w * self.seconds


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """A round of training."""

    round: int
    phase: str
    group: str
    train_loss: dict[str, float]
    energy: Sum
    energy_by_device: dict[str, Plan | None] = {}


class Energies(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, those that only measure among them, and those of each group."""

    total: Sum
    groups: dict[str, Sum]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed of report.json."""

    tasks: tuple[str, ...]
    rounds: list[Round]
    energy: Energies
    test_loss: dict[str, dict[str, float] | None]


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """Test loss that a stage, a group or a task lost, and what it cost. None is what was not measured, or no gain."""

    stage: str
    loss_before: float | None
    loss_after: float | None
    energy_j: float | None
    j_per_point: float | None


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """All that is said: energy in joules by group, by phase (over all groups) and by task, and for what was gained."""

    total: Sum
    groups: dict[str, Sum]
    phases: dict[str, float]
    tasks: dict[str, float]
    """Each group's energy divided evenly among its tasks."""
    gains: tuple[Gain, ...]
    """By stage: merge, split, all."""
    group_gains: dict[str, Gain]
    task_gains: dict[str, Gain]
    rounds: Annotated[list[Round], Meta(description="as in the report")]


def read(folder: Path) -> Report:
    """The report of a run: its folder, the server's state folder, or report.json itself. Raises ReportUnusable."""
    places = [folder] if folder.is_file() else [folder / place for place in _PLACES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ReportUnusable(f"{folder} has no report.json: `python -m broker_server report` writes one")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_REPORT_BYTES)
        return msgspec.json.decode(data, type=Report)
    except OSError as exc:
        raise ReportUnusable(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ReportUnusable(f"{path} is no report with energy: {exc}") from exc


def costs(report: Report) -> Costs:
    """The costs that a report states."""
    groups = report.energy.groups
    phases: dict[str, float] = {}
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
    return Costs(
        total=report.energy.total,
        groups=groups,
        phases=phases,
        tasks=tasks,
        gains=tuple(gains),
        group_gains=gained,
        task_gains=by_task,
        rounds=report.rounds,
    )


def words(found: Costs) -> str:
    """The costs for people."""
    whole = found.total
    lines = [f"in all {_joules(whole.energy_j)}{_how(whole)}"]
    if whole.above_idle_j is not None:
        lines.append(f"  above the idle boards {_joules(whole.above_idle_j)}")
    lines += ["by group", *(f"  {name}: {_joules(each.energy_j)}{_how(each)}" for name, each in found.groups.items())]
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
    """What was gained of the sum of some losses of the report."""
    losses = []
    for point in (before, after):
        known = report.test_loss.get(point) or {}
        losses.append(sum(known[name] for name in names) if names and all(name in known for name in names) else None)
    gained = None if losses[0] is None or losses[1] is None else losses[0] - losses[1]
    per_point = energy_j / gained if energy_j is not None and gained is not None and gained > 0 else None
    return Gain(stage=stage, loss_before=losses[0], loss_after=losses[1], energy_j=energy_j, j_per_point=per_point)


def _tasks(group: str) -> set[str]:
    """A group is named by its tasks; one whose name was cut counts those that are left."""
    return set(group.split("++", 1)[0].split("+"))


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _joules(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f} J"


def _how(found: Sum) -> str:
    said = [f"{found.measured} of {found.plans} plans measured"] if found.measured < found.plans else []
    if found.uncertainty_j is not None:
        said.insert(0, f"± {found.uncertainty_j:.1f} J")
    if found.estimated:
        said.append("estimated in part")
    return f" ({', '.join(said)})" if said else ""
