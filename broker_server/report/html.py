"""report.html: the report as one page that needs nothing else, with its plots inside; page.html is its template."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from broker_server.grouping.affinity import Affinities
from broker_server.grouping.confidence import by_errors
from broker_server.grouping.search import MAX_SPLIT_TASKS, TaskSplit
from broker_server.report import html_energy
from broker_server.report.build import STAGES, MetricMean, Report, RoundReport
from broker_server.report.figures import COLOURS, affinity_figure, loss_figure
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.metrics import METRICS, headed

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for the page: a PNG file's content, or an array (H, W), (H, W, 3) or (H, W, 4), uint8 or 0 to 1."""

    title: str
    image: bytes | NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """Pictures that belong side by side: an image, the truth and the prediction of one task, say."""

    title: str
    pictures: tuple[Picture, ...]


class SummaryCard(NamedTuple):
    """A figure at the top of the page, and its change from before the federation; empty for no change."""

    value: str
    title: str
    change: str = ""


def write(
    folder: Path, report: Report, *, affinities: Affinities | None = None, predictions: Sequence[PictureRow] = ()
) -> Path:
    """Write report.html into `folder` and return its path."""
    write_atomic(folder / PAGE, render(report, affinities=affinities, predictions=predictions).encode())
    return folder / PAGE


def render(report: Report, *, affinities: Affinities | None = None, predictions: Sequence[PictureRow] = ()) -> str:
    """Return the page. `affinities` add how sure the split is; `predictions` are shown row by row."""
    metrics = {stage: found for stage in STAGES if (found := report.test_metrics.get(stage))}
    return (
        _templates()
        .get_template("page.html")
        .render(
            report=report,
            cards=_cards(report),
            losses=_image(loss_figure(report)) if report.rounds else None,
            test_stages=[stage for stage in STAGES if report.test_loss.get(stage)],
            metric_stages=list(metrics),
            metrics={task: mean.name for found in metrics.values() for task, mean in found.items()},
            devices=sorted({device for found in report.spread.values() for device in found.by_device}),
            affinity=None if report.affinity is None else _image(affinity_figure(report.affinity)),
            wins=_wins(report, affinities),
            energy=html_energy.section(report),
            predictions=predictions,
        )
    )


@cache
def _templates() -> Environment:
    """Return the templates beside this module: everything is escaped, and an unknown name is an error."""
    templates = Environment(
        loader=PackageLoader("broker_server.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": _number,
        "total": lambda losses: sum(losses.values()) if losses else None,
        "metric": _metric,
        "headed": headed,
        "mib": lambda size_bytes: _number(None if size_bytes is None else size_bytes / 2**20, 2),
        "updates": _updates,
        "duration": _duration,
        "energy": html_energy.label_cell,
        "colour": lambda index: mpl.colors.to_hex(COLOURS[index % len(COLOURS)]),
        "png": _png,
    }
    return templates


def _cards(report: Report) -> list[SummaryCard]:
    cards = []
    before = (report.test_loss.get("before") or {}).get("total")
    for stage, words in zip(STAGES, ("before training", "after merging", "at the end"), strict=True):
        total = (report.test_loss.get(stage) or {}).get("total")
        if total is not None:
            change = "" if stage == "before" or not before else f"{100 * (total / before - 1):+.1f} %"
            cards.append(SummaryCard(f"{total:.4f}", f"test loss {words}", change))
    moved = sum((row.bytes_up or 0) + (row.bytes_down or 0) for row in report.rounds)
    if moved:
        cards.append(SummaryCard(f"{moved / 2**20:.1f} MiB", "moved in training"))
    peaks = [row.peak_rss_bytes for row in report.rounds if row.peak_rss_bytes is not None]
    if peaks:
        cards.append(SummaryCard(f"{max(peaks) / 2**20:.0f} MiB", "peak memory of a device"))
    energy = html_energy.label_cell(report.energy.total)
    if report.energy.total.energy_j is not None:
        cards.append(SummaryCard(energy.text, f"energy: {energy.note}" if energy.note else "energy"))
    return cards


def _wins(report: Report, affinities: Affinities | None) -> float | None:
    """Return how often the split wins, 0 to 1, with affinities drawn within their errors; None without any."""
    if (
        report.split is None
        or affinities is None
        or len(affinities.tasks) > MAX_SPLIT_TASKS
        or not np.isfinite(affinities.standard_error).all()
    ):
        return None
    split = TaskSplit(groups=report.split.groups, score=report.split.score, mode=report.split.mode)
    return by_errors(
        affinities.tasks, affinities.values, affinities.standard_error, split, groups=len(report.split.groups)
    )


def _image(figure: Figure) -> Mapping[str, int | str]:
    """Return a plot as its width on the page, in pixels, and its PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return {"width": round(100 * figure.get_figwidth()), "png": base64.b64encode(buffer.getvalue()).decode()}


def _png(picture: Picture) -> str:
    image = picture.image
    if not isinstance(image, bytes):
        from matplotlib.image import imsave

        buffer = io.BytesIO()
        imsave(buffer, image, format="png", cmap="viridis")
        image = buffer.getvalue()
    return base64.b64encode(image).decode()


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _metric(mean: MetricMean | None) -> str:
    return _number(None) if mean is None else _number(mean.value, METRICS[mean.name].decimals)


def _updates(row: RoundReport) -> str:
    """Return how the updates were sent, and how large they were beside weights in full."""
    several = len(row.update_schemes) > 1
    schemes = ", ".join(f"{number} {scheme}" if several else scheme for scheme, number in row.update_schemes.items())
    return schemes if row.update_ratio is None else f"{schemes}, {100 * row.update_ratio:.1f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
