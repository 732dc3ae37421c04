"""report.html: the report as one page that needs nothing else and runs no script; page.html is its template."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from broker_server.grouping.affinity import Affinities
from broker_server.grouping.confidence import by_errors
from broker_server.grouping.search import MAX_SPLIT_TASKS, TaskSplit
from broker_server.report import html_energy
from broker_server.report.build import MODELS, STAGES, AffinityReport, MetricMean, Report, RoundReport
from broker_server.report.curves import COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curves
from broker_server.report.side_by_side import RunOutcome, lines
from broker_server.report.summary import duration, sentences
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.metrics import METRICS, headed

PAGE = "report.html"
LETTER = 7.0
"""The width of a letter of the drawing."""


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


class Absence(NamedTuple):
    """A device, and in how many of its rounds it gave no result."""

    device: str
    missed: int
    rounds: int


class AffinityCell(NamedTuple):
    """How a step on one task changes another: in words, its part of the largest, and of how many measurements."""

    text: str
    strength: float
    """From −1 to 1; 0 on the diagonal, which the split does not use, and where nothing was measured."""
    measured: int


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
            sentences=sentences(report),
            cards=_cards(report),
            curves=curves(report),
            absences=_absences(report),
            models=_models(report),
            test_stages=[stage for stage in STAGES if report.test_loss.get(stage)],
            metric_stages=list(metrics),
            metrics={task: mean.name for found in metrics.values() for task, mean in found.items()},
            devices=sorted({device for found in report.spread.values() for device in found.by_device}),
            affinity=None if report.affinity is None else _affinity(report.affinity),
            wins=_wins(report, affinities),
            energy=html_energy.section(report),
            predictions=predictions,
        )
    )


def render_side_by_side(runs: Sequence[RunOutcome]) -> str:
    """Return the page of several runs."""
    return _templates().get_template("side_by_side.html").render(runs=runs, lines=lines(runs))


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
        "duration": duration,
        "energy": html_energy.label_cell,
        "colour": lambda index: COLOURS[index % len(COLOURS)],
        "png": _png,
        "change": _change,
        "shortened": _shortened,
        "plain": lambda value: value if isinstance(value, str) else msgspec.json.encode(value).decode(),
    }
    templates.globals |= {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "RIGHT": RIGHT, "TOP": TOP}
    return templates


def _cards(report: Report) -> list[SummaryCard]:
    cards = []
    for stage, words in zip(STAGES, ("before training", "after merging", "at the end"), strict=True):
        total = (report.test_loss.get(stage) or {}).get("total")
        if total is not None:
            cards.append(SummaryCard(f"{total:.4f}", f"test loss {words}", _change(report, stage, "total")))
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


def _absences(report: Report) -> list[Absence]:
    """Return the devices that gave no result in rounds they were asked to take part in, the worst first."""
    asked: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for row in report.rounds:
        members = {*row.clients, *row.energy_by_device}
        asked.update(members)
        missed.update(members.difference(row.clients))
    return [Absence(device, number, asked[device]) for device, number in missed.most_common()]


def _models(report: Report) -> list[tuple[str, str]]:
    """Return the groups that were trained last: the file of each one's weights, and its tasks with commas."""
    if not report.rounds:
        return []
    last = report.rounds[-1].phase
    groups = dict.fromkeys(row.group for row in report.rounds if row.phase == last)
    return [(f"{MODELS}/{group}.safetensors", group.replace("+", ",")) for group in groups]


def _affinity(found: AffinityReport) -> list[tuple[str, list[AffinityCell]]]:
    """Return a line for each task that a step is taken on: its name, and a cell for each task that it changes."""
    known = [
        abs(value) for i, row in enumerate(found.values) for j, value in enumerate(row) if i != j and value is not None
    ]
    largest = max(known, default=0.0) or 1.0
    return [
        (
            task,
            [
                AffinityCell(
                    text="–" if value is None else f"{value:.3g}",
                    strength=0.0 if i == j or value is None else value / largest,
                    measured=found.counts[i][j],
                )
                for j, value in enumerate(found.values[i])
            ],
        )
        for i, task in enumerate(found.tasks)
    ]


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


def _change(report: Report, stage: str, name: str) -> str:
    """Return how a test loss changed from before the federation, in percent; empty where that says nothing."""
    before, after = ((report.test_loss.get(each) or {}).get(name) for each in ("before", stage))
    if stage == "before" or not before or after is None or before < 0:
        return ""
    return f"{100 * (after / before - 1):+.1f} %"


def _shortened(name: str, width: float) -> str:
    """Return a name as far as it fits into a width of the drawing."""
    room = max(1, int(width / LETTER))
    return name if len(name) <= room else f"{name[: room - 1]}…"
