"""Several reports side by side: a column for each run, the least loss, time and energy of each line marked."""

# coverage: every branch

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from broker_server.report.build import STAGES, Losses, MetricMean, Report
from broker_server.report.energy import EnergySum, label
from broker_server.report.summary import duration
from edge_runtime.wire.metrics import METRICS, headed


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one run came to. None is a figure that was not measured."""

    name: str
    strategy: str
    seed: int
    groups: tuple[str, ...]
    """The groups that were trained last."""
    rounds: int
    test_loss: Losses
    """Of the last stage that was evaluated, by task, with `total` where every task was."""
    test_metrics: dict[str, MetricMean]
    wall_s: float | None
    bytes_moved: int
    peak_rss_bytes: int | None
    energy: EnergySum


class Line(NamedTuple):
    """A line of the table: its title, a text for each run, and which of them are the best."""

    title: str
    texts: tuple[str, ...]
    best: frozenset[int]


def run(name: str, report: Report) -> RunOutcome:
    """Return what a report says of its run."""
    last = report.rounds[-1].phase if report.rounds else ""
    stage = next((each for each in reversed(STAGES) if report.test_loss.get(each)), STAGES[0])
    return RunOutcome(
        name=name,
        strategy=report.strategy,
        seed=report.seed,
        groups=tuple(dict.fromkeys(row.group for row in report.rounds if row.phase == last)),
        rounds=len(report.rounds),
        test_loss=report.test_loss.get(stage) or {},
        test_metrics=report.test_metrics.get(stage) or {},
        wall_s=report.wall_s,
        bytes_moved=sum((row.bytes_up or 0) + (row.bytes_down or 0) for row in report.rounds),
        peak_rss_bytes=max((row.peak_rss_bytes for row in report.rounds if row.peak_rss_bytes), default=None),
        energy=report.energy.total,
    )


def lines(runs: Sequence[RunOutcome]) -> list[Line]:
    """Return the table of runs."""
    losses = list(dict.fromkeys(task for each in runs for task in each.test_loss))
    losses.sort(key=lambda task: task == "total")
    metrics = {task: mean.name for each in runs for task, mean in each.test_metrics.items()}
    found = [
        Line("strategy", tuple(each.strategy for each in runs), frozenset()),
        Line("seed", tuple(str(each.seed) for each in runs), frozenset()),
        Line("groups", tuple("; ".join(each.groups) or "–" for each in runs), frozenset()),
        Line("rounds of training", tuple(str(each.rounds) for each in runs), frozenset()),
    ]
    for task in losses:
        values = [each.test_loss.get(task) for each in runs]
        found.append(_line(f"test loss: {task}", values, ["–" if v is None else f"{v:.4f}" for v in values]))
    for task, name in metrics.items():
        means = [each.test_metrics.get(task) for each in runs]
        texts = ["–" if mean is None else f"{mean.value:.{METRICS[name].decimals}f}" for mean in means]
        found.append(Line(f"{task}: {headed(name)}", tuple(texts), frozenset()))
    walls, peaks = [each.wall_s for each in runs], [each.peak_rss_bytes for each in runs]
    found += [
        _line("time", walls, ["–" if wall is None else duration(wall) for wall in walls]),
        _line(
            "moved over the network",
            [each.bytes_moved for each in runs],
            [f"{each.bytes_moved / 2**20:.1f} MiB" for each in runs],
        ),
        _line("peak memory of a device", peaks, ["–" if peak is None else f"{peak / 2**20:.0f} MiB" for peak in peaks]),
        _line("energy", [each.energy.energy_j for each in runs], [label(each.energy) for each in runs]),
    ]
    return found


def _line(title: str, values: Sequence[float | None], texts: Sequence[str]) -> Line:
    """Return a line whose least values are the best; none is where one is missing or all are the same."""
    known = [value for value in values if value is not None]
    is_telling = len(known) == len(values) and len(set(known)) > 1
    best = frozenset(at for at, value in enumerate(values) if is_telling and value == min(known))
    return Line(title, tuple(texts), best)
