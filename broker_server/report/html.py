"""report.html: the report as one page that needs nothing else, with its plots inside."""

import base64
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from broker_server.grouping.affinity import Affinities
from broker_server.grouping.confidence import by_errors
from broker_server.grouping.search import MAX_SPLIT_TASKS, TaskSplit
from broker_server.report import html_energy as report_energy
from broker_server.report.build import STAGES, AffinityReport, MetricMean, OfficialReport, Report, RoundReport
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.metrics import METRICS, headed

PAGE = "report.html"
_COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
_INK = "#1d2733"
_STYLE = """
:root{color-scheme:light}
body{margin:0;background:#f4f6f8;color:#1d2733;font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:28px;margin:0 0 4px}h2{font-size:18px;margin:0 0 12px}
.lead{color:#5b6b7b;margin:0 0 24px}
section{background:#fff;border:1px solid #e1e7ec;border-radius:10px;padding:20px 24px;margin:0 0 20px}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:0 0 20px}
.card{flex:1 1 150px;background:#fff;border:1px solid #e1e7ec;border-radius:10px;padding:14px 18px}
.card b{display:block;font-size:24px;font-variant-numeric:tabular-nums}.card span{color:#5b6b7b;font-size:13px}
.card i{font-style:normal;font-size:13px;color:#18794e}.card i.up{color:#b42318}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13.5px}
th{color:#5b6b7b;font-weight:600;text-align:left;border-bottom:2px solid #e1e7ec;padding:6px 10px}
td{border-bottom:1px solid #eef2f5;padding:6px 10px}td.n,th.n{text-align:right}
td small{display:block;color:#5b6b7b;white-space:nowrap}
.scroll{overflow-x:auto}img{max-width:100%;height:auto;display:block}
.group{display:inline-block;border-radius:8px;padding:10px 14px;margin:0 10px 10px 0;color:#fff}
.group small{display:block;opacity:.85}
.note{color:#5b6b7b;font-size:13.5px;margin:10px 0 0}
.pictures{display:grid;gap:8px}.pictures figure{margin:0}.pictures figcaption{font-size:12.5px;color:#5b6b7b}
.pictures img{width:100%;image-rendering:pixelated;border-radius:4px}
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for the page: a PNG file's content, or an array (H, W), (H, W, 3) or (H, W, 4), uint8 or 0 to 1."""

    title: str
    image: bytes | NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures that belong side by side: an image, the truth and the prediction of one task, say."""

    title: str
    pictures: tuple[Picture, ...]


def write(
    folder: Path, report: Report, *, affinities: Affinities | None = None, predictions: Sequence[Row] = ()
) -> Path:
    """Write report.html into `folder`; its path."""
    write_atomic(folder / PAGE, render(report, affinities=affinities, predictions=predictions).encode())
    return folder / PAGE


def render(report: Report, *, affinities: Affinities | None = None, predictions: Sequence[Row] = ()) -> str:
    """The page. `affinities` add how sure the split is; `predictions` are shown row by row."""
    wall = "" if report.wall_s is None else f" · {_duration(report.wall_s)}"
    groups = f" · split into {len(report.split.groups)} groups" if report.split else ""
    lead = f"{len(report.tasks)} tasks: {', '.join(report.tasks)}{groups} · seed {report.seed}{wall}"
    name = _text(report.strategy.upper().replace("_", "-"))
    parts = [f"<h1>MAS Edge: {name}</h1><p class=lead>{_text(lead)}</p>", _cards(report)]
    if report.rounds:
        parts.append(_section("Losses", _figure(loss_figure(report), "losses over the rounds")))
    if any(report.test_loss.values()):
        parts.append(_section("Test losses", _test_table(report)))
    if any(report.test_metrics.values()):
        parts.append(_section("Test metrics", _metrics_table(report)))
    if report.affinity is not None:
        note = "How a step on the task of a row helps (positive) or hurts (negative) the task of a column."
        picture = _figure(affinity_figure(report.affinity), "affinity matrix")
        parts.append(_section("Affinities", f"{picture}<p class=note>{note}</p>"))
    if report.split is not None:
        parts.append(_section("Split", _split(report, affinities)))
    if report.official:
        parts.append(_section("Official artifacts made during the run", "".join(_official(report.official))))
    if energy := report_energy.section(report):
        parts.append(_section("Energy", energy))
    if predictions:
        parts.append(_section("Predictions on test images", "".join(map(_row, predictions))))
    if report.rounds:
        parts.append(_section("Rounds", f"<div class=scroll>{_rounds(report.rounds)}</div>"))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    parts.append(f"<p class=note>{_text(versions)}</p>")
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>MAS Edge report</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _official(outcomes: Mapping[str, OfficialReport]) -> Iterator[str]:
    for group, outcome in outcomes.items():
        said = f"within {outcome.max_relative_error} of the portable graphs" if outcome.problem is None else "none"
        yield f"<p>{_text(group)}: {_text(said)}<span class=note> {_text(outcome.problem or '')}</span></p>"


def loss_figure(report: Report) -> Figure:
    """Training losses by task over the rounds; the groups' rounds, which follow one another, are shaded."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(1.7, 1))
    left, right = axes
    for i, task in enumerate(report.tasks):
        colour = _COLOURS[i % len(_COLOURS)]
        runs: dict[tuple[str, str], list[RoundReport]] = {}
        for row in report.rounds:
            if task in row.train_loss:
                runs.setdefault((row.phase, row.group), []).append(row)
        for number, run in enumerate(runs.values()):
            label = task if number == 0 else None
            left.plot(
                [r.round for r in run], [r.train_loss[task] for r in run], "o-", ms=3, lw=1.6, color=colour, label=label
            )
    groups = list(dict.fromkeys((row.phase, row.group) for row in report.rounds))
    for number, key in enumerate(groups):
        rounds = [row.round for row in report.rounds if (row.phase, row.group) == key]
        left.axvspan(min(rounds) - 0.5, max(rounds) + 0.5, color="#000000", alpha=0.05 if number % 2 else 0.0, lw=0)
        name = "merged" if key[0] == "merge" else key[1].replace("+", "\n")
        left.text(
            (min(rounds) + max(rounds)) / 2,
            1.0,
            name,
            transform=left.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=7,
            color="#5b6b7b",
        )
    left.set_xlabel("round")
    left.set_ylabel("training loss")
    left.legend(fontsize=8, frameon=False, ncols=2)
    totals = [
        (stage, losses["total"]) for stage in STAGES if (losses := report.test_loss.get(stage)) and "total" in losses
    ]
    bars = right.bar(
        [stage for stage, _ in totals],
        [loss for _, loss in totals],
        color=["#9aa8b5", "#4c8dcb", "#18794e"][: len(totals)],
    )
    right.bar_label(bars, fmt="%.4f", fontsize=8, padding=2)
    right.set_ylabel("total test loss")
    right.margins(y=0.15)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    return figure


def affinity_figure(affinity: AffinityReport) -> Figure:
    """The affinity matrix as a heat map with its values; the diagonal is not used by the split and is greyed."""
    values = np.array([[math.nan if v is None else v for v in row] for row in affinity.values])  # (T, T)
    size = 1.6 + 0.7 * len(affinity.tasks)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.subplots()
    shown = values.copy()
    np.fill_diagonal(shown, math.nan)
    limit = float(np.nanmax(np.abs(shown))) if np.isfinite(shown).any() else 1.0
    colours = mpl.colormaps["RdBu"].with_extremes(bad="#e9edf0")
    image = axes.imshow(shown, cmap=colours, vmin=-limit or -1.0, vmax=limit or 1.0)
    for (i, j), value in np.ndenumerate(values):
        text = "–" if math.isnan(value) else f"{value:.3g}"
        strong = i != j and abs(value) > 0.6 * limit
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if strong else _INK)
    axes.set_xticks(range(len(affinity.tasks)), affinity.tasks, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(affinity.tasks)), affinity.tasks, fontsize=8)
    axes.set_xlabel("… upon the loss of")
    axes.set_ylabel("a step on …")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _cards(report: Report) -> str:
    cards = []
    before = (report.test_loss.get("before") or {}).get("total")
    for stage, words in zip(STAGES, ("before training", "after merging", "at the end"), strict=True):
        total = (report.test_loss.get(stage) or {}).get("total")
        if total is not None:
            change = "" if stage == "before" or not before else f"{100 * (total / before - 1):+.1f} %"
            direction = " class=up" if change.startswith("+") else ""
            cards.append((f"{total:.4f}", f"test loss {words}", f"<i{direction}>{change}</i>"))
    moved = sum((row.bytes_up or 0) + (row.bytes_down or 0) for row in report.rounds)
    if moved:
        cards.append((f"{moved / 2**20:.1f} MiB", "moved in training", ""))
    peaks = [row.peak_rss_bytes for row in report.rounds if row.peak_rss_bytes is not None]
    if peaks:
        cards.append((f"{max(peaks) / 2**20:.0f} MiB", "peak memory of a device", ""))
    if energy := report_energy.card(report):
        cards.append((*energy, ""))
    return (
        "<div class=cards>"
        + "".join(
            f"<div class=card><b>{_text(value)}</b><span>{_text(words)}</span> {extra}</div>"
            for value, words, extra in cards
        )
        + "</div>"
    )


def _split(report: Report, affinities: Affinities | None) -> str:
    assert report.split is not None
    found = report.split
    blocks = "".join(
        f"<span class=group style='background:{mpl.colors.to_hex(_COLOURS[i % len(_COLOURS)])}'>"
        f"<small>group {i + 1}</small>{_text(' + '.join(group))}</span>"
        for i, group in enumerate(found.groups)
    )
    mode = {"exactly": "exactly", "at_most": "at most", "overlap": "overlapping, at most"}[found.mode]
    note = f"Score {found.score:.4f}; {mode} {len(found.groups)} groups."
    if (
        affinities is not None
        and len(affinities.tasks) <= MAX_SPLIT_TASKS
        and np.isfinite(affinities.standard_error).all()
    ):
        split = TaskSplit(groups=found.groups, score=found.score, mode=found.mode)
        sure = by_errors(
            affinities.tasks, affinities.values, affinities.standard_error, split, groups=len(found.groups)
        )
        note += f" With affinities drawn anew within their standard errors it wins {100 * sure:.0f} times of 100."
    return f"<div>{blocks}</div><p class=note>{_text(note)}</p>"


def _test_table(report: Report) -> str:
    names = [*report.tasks, "total"]
    stages = [stage for stage in STAGES if report.test_loss.get(stage)]
    head = "".join(f"<th class=n>{_text(stage)}</th>" for stage in stages)
    rows = "".join(
        f"<tr><td>{_text(name)}</td>"
        + "".join(f"<td class=n>{_number((report.test_loss.get(stage) or {}).get(name))}</td>" for stage in stages)
        + "</tr>"
        for name in names
    )
    return f"<table><tr><th>task</th>{head}</tr>{rows}</table>"


def _metrics_table(report: Report) -> str:
    stages = [(stage, found) for stage in STAGES if (found := report.test_metrics.get(stage))]
    names = {task: mean.name for _, found in stages for task, mean in found.items()}
    head = "".join(f"<th class=n>{_text(stage)}</th>" for stage, _ in stages)
    rows = "".join(
        f"<tr><td>{_text(task)}</td><td>{_text(headed(name))}</td>"
        + "".join(f"<td class=n>{_metric(found.get(task))}</td>" for _, found in stages)
        + "</tr>"
        for task, name in sorted(names.items())
    )
    note = "Means over devices, weighted by examples; ↑ higher is better, ↓ lower."
    return f"<table><tr><th>task</th><th>metric</th>{head}</tr>{rows}</table><p class=note>{note}</p>"


def _rounds(rounds: Sequence[RoundReport]) -> str:
    columns = (
        "round",
        "phase",
        "group",
        "devices",
        "train loss",
        "val loss",
        "s",
        "MiB up",
        "updates",
        "MiB down",
        "peak MiB",
        "energy",
    )
    head = "".join(f"<th{' class=n' if i not in {1, 2} else ''}>{name}</th>" for i, name in enumerate(columns))
    lines = []
    for row in rounds:
        cells = (
            str(row.round),
            _text(row.phase),
            _text(row.group),
            str(len(row.clients)),
            _number(sum(row.train_loss.values()) if row.train_loss else None),
            _number(sum(row.val_loss.values()) if row.val_loss else None),
            f"{row.wall_s:.1f}",
            _mib(row.bytes_up),
            _text(_updates(row)),
            _mib(row.bytes_down),
            _mib(row.peak_rss_bytes),
            report_energy.cell(row),
        )
        lines.append(
            "<tr>"
            + "".join(f"<td{' class=n' if i not in {1, 2} else ''}>{cell}</td>" for i, cell in enumerate(cells))
            + "</tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _row(row: Row) -> str:
    figures = "".join(
        f"<figure><img alt='{_text(picture.title)}' src='data:image/png;base64,{_png(picture.image)}'>"
        f"<figcaption>{_text(picture.title)}</figcaption></figure>"
        for picture in row.pictures
    )
    columns = max(1, len(row.pictures))
    style = f"grid-template-columns:repeat({columns},minmax(0,160px))"
    return f"<p class=note>{_text(row.title)}</p><div class=pictures style='{style}'>{figures}</div>"


def _png(image: bytes | NDArray[np.generic]) -> str:
    if not isinstance(image, bytes):
        from matplotlib.image import imsave

        buffer = io.BytesIO()
        imsave(buffer, image, format="png", cmap="viridis")
        image = buffer.getvalue()
    return base64.b64encode(image).decode()


def _figure(figure: Figure, words: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    width, data = round(100 * figure.get_figwidth()), base64.b64encode(buffer.getvalue()).decode()
    return f"<img width={width} alt='{_text(words)}' src='data:image/png;base64,{data}'>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _text(text: str) -> str:
    return html.escape(text)


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _metric(mean: MetricMean | None) -> str:
    return _number(None) if mean is None else _number(mean.value, METRICS[mean.name].decimals)


def _updates(row: RoundReport) -> str:
    """How the updates were sent, and how large they were beside weights in full."""
    several = len(row.update_schemes) > 1
    schemes = ", ".join(f"{number} {scheme}" if several else scheme for scheme, number in row.update_schemes.items())
    return schemes if row.update_ratio is None else f"{schemes}, {100 * row.update_ratio:.1f} %"


def _mib(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
