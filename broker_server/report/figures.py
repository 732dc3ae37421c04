"""The plots of the report's page."""

import math

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from broker_server.report.build import STAGES, AffinityReport, Report, RoundReport

COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
"""The colours of tasks and of groups, in their order."""
_INK = "#1d2733"


def loss_figure(report: Report) -> Figure:
    """Draw training losses by task over the rounds, every other group shaded, and the total test losses."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(1.7, 1))
    left, right = axes
    for i, task in enumerate(report.tasks):
        colour = COLOURS[i % len(COLOURS)]
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
    """Draw the affinity matrix as a heat map with its values; the diagonal, which the split does not use, is grey."""
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
