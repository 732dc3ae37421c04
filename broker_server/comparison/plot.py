"""The picture of a comparison: total test loss against training time and against energy, a row for each section.

Seeds differ more than methods do, so a method stands where its difference to one-by-one, paired by seed, puts it, and
its bar is the interval of that difference. Without one-by-one they are the plain means and their intervals.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from broker_server.comparison.comparison import Comparison, MethodResult
from broker_server.grouping.statistics import Estimate
from broker_server.simulation.summary import TOTAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "one_by_one": "#444b54",
    "all_in_one": "#b35900",
    "tag": "#2a7f62",
    "hoa": "#7a4fa3",
    "mas": "#c2185b",
    "fixed": "#1f6fb2",
    "tree": "#0f7c8c",
    "exhaustive": "#7d7d00",
}
_MARKERS = {
    "one_by_one": "s",
    "all_in_one": "D",
    "tag": "^",
    "hoa": "v",
    "mas": "o",
    "fixed": "P",
    "tree": "X",
    "exhaustive": "*",
}
_NUMBERED = re.compile(r"([A-Za-z]+)-\d+")
"""Methods that differ in a number alone are joined by a line."""
_LOG_FROM = 4.0
"""From this ratio of the largest to the smallest on, an axis is logarithmic."""
_PLACES = [
    (math.cos(turn) * far, math.sin(turn) * far)
    for far in (11.0, 18.0, 27.0, 38.0, 52.0)
    for turn in (math.radians(angle) for angle in (0, 180, 90, 270, 45, 315, 135, 225))
]
"""Where a label may stand beside its point, in points of the page, from the best place on."""

Value = Callable[[MethodResult], Estimate | None]
_PANELS: tuple[tuple[str, Value, float], ...] = (
    ("training time: CPU seconds over all devices, measured", lambda each: each.compute_s, 1.0),
    ("training energy: kJ over all devices, by the boards' rule (estimated)", lambda each: each.simulated_j, 1e3),
)


def draw(comparison: Comparison) -> bytes:
    """Return a PNG file's content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sections = [name for name in comparison.sections if _points(comparison, name)]
    figure = Figure(figsize=(14, 0.7 + 5.3 * max(1, len(sections))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    over = "over seeds" if comparison.reference is None else f"of the difference to {comparison.reference} over seeds"
    figure.suptitle(f"{comparison.title}: lower left is better (95 % intervals {over})".replace("$", r"\$"))
    base = next((each.test_loss.get(TOTAL) for each in comparison.methods if each.method == comparison.reference), None)
    grid = figure.subplots(max(1, len(sections)), len(_PANELS), squeeze=False)
    placed = []
    for axes_row, section in zip(grid, sections, strict=False):
        for axes, (label, value, unit) in zip(axes_row, _PANELS, strict=True):
            placed.append((axes, _panel(axes, _points(comparison, section), base, value, unit)))
            axes.set_xlabel(label)
            axes.set_ylabel("total test loss")
            if section:
                axes.set_title(section, loc="left", fontsize=11)
    figure.canvas.draw()  # where things are is known from here on
    for axes, points in placed:
        _label(axes, points)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _points(comparison: Comparison, section: str) -> list[MethodResult]:
    """Return the methods of a section with a loss, and in each section the one that the others are related to."""
    return [
        each
        for each in comparison.methods
        if (each.section == section or each.method == comparison.reference) and TOTAL in each.test_loss
    ]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method in a panel; `reach` is half the width of its intervals in x and y."""

    x: float
    y: float
    reach: tuple[float, float]
    text: str
    colour: str


def _loss(method: MethodResult, base: Estimate | None) -> Estimate:
    """Where a method stands, and the interval that tells it from the others."""
    apart = None if method.relative is None else method.relative.test_loss
    if base is None or apart is None:
        return method.test_loss[TOTAL]
    return Estimate(n=apart.n, mean=base.mean + apart.mean, half_width=apart.half_width)


def _panel(
    axes: "Axes", methods: Sequence[MethodResult], base: Estimate | None, value: Value, unit: float
) -> list[Point]:
    points: list[Point] = []
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for each in methods:
        x, y = value(each), _loss(each, base)
        if x is None:
            continue
        kind = str(each.strategy)
        colour = _COLOURS.get(kind, "#555555")
        axes.errorbar(
            x.mean / unit,
            y.mean,
            xerr=None if x.half_width is None else x.half_width / unit,
            yerr=y.half_width,
            fmt=_MARKERS.get(kind, "o"),
            color=colour,
            markersize=8,
            markeredgecolor="white",
            elinewidth=1,
            capsize=2.5,
            alpha=0.95,
            zorder=3,
        )
        if family := _NUMBERED.fullmatch(each.method):
            lines.setdefault((family[1], colour), []).append((x.mean / unit, y.mean))
        reach = ((x.half_width or 0.0) / unit, y.half_width or 0.0)
        points.append(Point(x=x.mean / unit, y=y.mean, reach=reach, text=each.method, colour=colour))
    for (_, colour), line in lines.items():
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1, alpha=0.35, zorder=2)
    if points and max(each.x for each in points) > _LOG_FROM * max(min(each.x for each in points), 1e-9):
        _logarithmic(axes)
    axes.margins(0.12)
    _keep_to_means(axes, points)
    axes.grid(visible=True, color="#e4e8ec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return points


def _keep_to_means(axes: "Axes", points: Sequence[Point]) -> None:
    """Let wide intervals, of two seeds say, reach over the edge instead of pressing all points together."""
    if not points:
        return
    means = [each.y for each in points]
    room = 0.2 * (max(means) - min(means)) + 1.2 * median(each.reach[1] for each in points)
    room = room or 0.05 * abs(means[0]) or 1.0
    axes.set_ylim(min(means) - room, max(means) + room)


def _logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(axes: "Axes", points: Sequence[Point]) -> None:
    """Write each label beside its point, where it covers no other label and no point."""
    to_pixels = axes.transData.transform
    scale = axes.figure.dpi / 72
    taken = [box for point in points for box in _covered(point, to_pixels)]
    inside = axes.get_window_extent()
    for point in points:
        at_x, at_y = to_pixels((point.x, point.y))
        wide, high = 5.6 * scale * len(point.text), 11 * scale
        best: tuple[float, tuple[float, float], Any] | None = None
        for rank, (dx, dy) in enumerate(_PLACES):
            lean = 0.0 if abs(dx) < 1 else math.copysign(wide / 2, dx)
            box = _box(at_x + dx * scale + lean, at_y + dy * scale, wide / 2, high / 2)
            out = box[0] < inside.x0 or box[2] > inside.x1 or box[1] < inside.y0 or box[3] > inside.y1
            cost = rank + 1e3 * sum(_overlap(box, other) for other in taken) + (1e6 if out else 0)
            if best is None or cost < best[0]:
                best = (cost, (dx, dy), box)
        assert best is not None
        _, (dx, dy), box = best
        taken.append(box)
        far = math.hypot(dx, dy) > 20
        axes.annotate(
            point.text,
            (point.x, point.y),
            (dx, dy),
            textcoords="offset points",
            ha="center" if abs(dx) < 1 else "left" if dx > 0 else "right",
            va="center",
            fontsize=9,
            color=point.colour,
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": point.colour, "alpha": 0.4, "linewidth": 0.7} if far else None,
        )


def _covered(point: Point, to_pixels: Callable[[Any], Any]) -> list["Box"]:
    """Return the rectangle that a point and the bars of its intervals cover, in pixels."""
    at_x, at_y = to_pixels((point.x, point.y))
    right, _ = to_pixels((point.x + point.reach[0], point.y))
    _, top = to_pixels((point.x, point.y + point.reach[1]))
    return [_box(at_x, at_y, 9, 9), _box(at_x, at_y, right - at_x, 4), _box(at_x, at_y, 4, top - at_y)]


Box = tuple[float, float, float, float]


def _box(x: float, y: float, half_wide: float, half_high: float) -> Box:
    return (x - half_wide, y - half_high, x + half_wide, y + half_high)


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0
