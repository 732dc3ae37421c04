"""Curves of the training losses by task, as places in a drawing, which the page's template makes an SVG of.

Every loss is shown beside its own start, so that tasks of any unit share one scale: 0.5 is half of the loss of the
first round. Where a loss does not start above zero that says nothing, and the losses themselves are shown.
"""

# coverage: every branch

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker_server.report.build import Report, RoundReport

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a89a00", "#777777")
"""The colours of tasks and of groups, in their order (Okabe and Ito, with an olive in place of the yellow)."""
WIDTH, HEIGHT = 1000.0, 340.0
"""The drawing, in its own units."""
LEFT, RIGHT, TOP, BOTTOM = 56.0, 190.0, 34.0, 44.0
"""What is left around the curves for texts."""
LINE = 15.0
"""The height of a line of text."""
MOST_TICKS = 6
TINY = 1e-12
"""Losses nearer together than this are drawn as one."""


class LossPoint(NamedTuple):
    """A loss: where it stands, and what it says when asked."""

    x: float
    y: float
    text: str


class Tick(NamedTuple):
    """A number beside an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A task's losses: a run of points for each group that trained it, and where its name stands."""

    task: str
    colour: str
    runs: tuple[tuple[LossPoint, ...], ...]
    label_y: float

    @property
    def paths(self) -> tuple[str, ...]:
        """The runs as `points` of SVG's polylines."""
        return tuple(" ".join(f"{point.x:.1f},{point.y:.1f}" for point in run) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Band:
    """The rounds of one group."""

    x: float
    width: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The drawing."""

    curves: tuple[Curve, ...]
    bands: tuple[Band, ...]
    rounds: tuple[Tick, ...]
    losses: tuple[Tick, ...]
    is_relative: bool


def curves(report: Report) -> Curves | None:
    """Return the drawing of a report; None where nothing was trained."""
    tasks = [task for task in report.tasks if any(task in row.train_loss for row in report.rounds)]
    if not tasks:
        return None
    starts = {task: next(row.train_loss[task] for row in report.rounds if task in row.train_loss) for task in tasks}
    is_relative = all(start > 0 for start in starts.values())
    scale = {task: starts[task] if is_relative else 1.0 for task in tasks}
    values = [
        loss / scale[task] for row in report.rounds for task, loss in row.train_loss.items() if math.isfinite(loss)
    ]
    ticks = _steps(min(0.0, *values), max(1.0 if is_relative else 0.0, *values))
    first, last = report.rounds[0].round, max(row.round for row in report.rounds)
    across = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    up = (HEIGHT - TOP - BOTTOM) / (ticks[-1] - ticks[0])

    def x(number: float) -> float:
        return LEFT + (number - first + 0.5) * across

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ticks[0]) * up

    def point(task: str, row: RoundReport) -> LossPoint:
        loss = row.train_loss[task]
        part = f", {100 * loss / scale[task]:.0f} % of its start" if is_relative else ""
        return LossPoint(x(row.round), y(loss / scale[task]), f"{task}, round {row.round}: {loss:.4f}{part}")

    groups: dict[tuple[str, str], list[RoundReport]] = {}
    for row in report.rounds:
        groups.setdefault((row.phase, row.group), []).append(row)
    drawn = {
        task: tuple(
            run
            for rows in groups.values()
            if (run := tuple(point(task, row) for row in rows if math.isfinite(row.train_loss.get(task, math.nan))))
        )
        for task in tasks
    }
    labels = _apart({task: runs[-1][-1].y for task, runs in drawn.items() if runs})
    return Curves(
        curves=tuple(
            Curve(task=task, colour=COLOURS[index % len(COLOURS)], runs=drawn[task], label_y=labels[task])
            for index, task in enumerate(report.tasks)
            if task in labels
        ),
        bands=tuple(
            Band(
                x=x(rows[0].round - 0.5),
                width=(rows[-1].round - rows[0].round + 1) * across,
                name="merged" if phase == "merge" else group,
            )
            for (phase, group), rows in groups.items()
        ),
        rounds=tuple(Tick(x(number), f"{number:g}") for number in _steps(first, last) if first <= number <= last),
        losses=tuple(Tick(y(value), f"{value:g}") for value in ticks),
        is_relative=is_relative,
    )


def _steps(low: float, high: float) -> Sequence[float]:
    """Return at least two round numbers, of which the outer ones hold `low` and `high` between them."""
    wide = max(high - low, 1e-6 * max(abs(low), abs(high)), TINY) if high or low else 1.0
    size = 10.0 ** math.floor(math.log10(wide / MOST_TICKS))
    step = next(size * factor for factor in (1, 2, 5, 10) if wide / (size * factor) <= MOST_TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _apart(places: dict[str, float]) -> dict[str, float]:
    """Return places at least a line apart, in the same order from the top and above the lower edge."""
    found: dict[str, float] = {}
    free = -math.inf
    for task, at in sorted(places.items(), key=lambda item: item[1]):
        found[task] = free = max(at, free + LINE)
    below = HEIGHT - BOTTOM + LINE
    for task in reversed(found):
        found[task] = min(found[task], below - LINE)
        below = found[task]
    return found
