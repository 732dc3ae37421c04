"""A picture of a federation's energy."""

from pathlib import Path

from matplotlib.figure import Figure

from broker_server.report.build import ReportImpossible
from broker_server.report.energy_costs import EnergyBreakdown


def draw(found: EnergyBreakdown, path: Path) -> None:
    """Draw joules by group and phase, training loss over energy, and the joules for each point of test loss.

    A stage, group or task without a gain is left out. Raises ReportImpossible where the file cannot be written.
    """
    figure = Figure(figsize=(10, 9), layout="constrained")
    (left, right), (prices, by_task) = figure.subplots(2, 2)
    for axes, title, gains in (
        (prices, "stages and groups", [*found.gains, *found.group_gains.values()]),
        (by_task, "tasks, each group's energy divided evenly", found.task_gains.values()),
    ):
        known = {gain.stage: gain.j_per_point for gain in gains if gain.j_per_point is not None}
        axes.barh(range(len(known)), list(known.values()), color="tab:green")
        axes.set_yticks(range(len(known)), [name.replace("+", "+\n") for name in known], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("joules for a point of test loss")
        axes.set_title(title, fontsize=9)
    bottom = dict.fromkeys(found.groups, 0.0)
    for phase in found.phases:
        heights = {
            name: (each.phases[phase].energy_j or 0.0) if phase in each.phases else 0.0
            for name, each in found.groups.items()
        }
        left.bar(range(len(heights)), list(heights.values()), bottom=list(bottom.values()), label=phase)
        bottom = {name: bottom[name] + height for name, height in heights.items()}
    left.set_xticks(range(len(bottom)), [name.replace("+", "+\n") for name in bottom], fontsize=7)
    left.set_ylabel("joules")
    if found.phases:
        left.legend(fontsize=7)
    spent: dict[str, float] = {}
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in found.rounds:
        spent[row.group] = spent.get(row.group, 0.0) + (row.energy.energy_j or 0.0)
        lines.setdefault(row.group, []).append((spent[row.group], sum(row.train_loss.values())))
    for group, points in lines.items():
        right.plot([point[0] for point in points], [point[1] for point in points], marker="o", label=group)
    right.set_xlabel("joules spent on the group")
    right.set_ylabel("training loss")
    if lines:
        right.legend(fontsize=7)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as exc:
        raise ReportImpossible(f"{path} cannot be drawn: {exc}") from exc
