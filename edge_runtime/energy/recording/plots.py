"""A picture of a recording. matplotlib is for the workstation: a board records, and its CSV file is drawn there."""

from collections.abc import Sequence
from pathlib import Path

from edge_runtime.energy.recording.recording import IDLE, PowerReading, segments


class PlotImpossible(Exception):
    """There is no matplotlib, or the file cannot be written; the sentence states which."""


def draw(readings: Sequence[PowerReading], source: str, path: Path) -> None:
    """Draw watts over time, the marks, and the idle baseline. Raises PlotImpossible."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise PlotImpossible("matplotlib is not installed: draw on the workstation, from the CSV file") from exc
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([each.seconds for each in readings], [each.watts for each in readings], linewidth=0.8, color="tab:blue")
    seen: set[str] = set()
    for reading in readings:
        if reading.mark not in seen:
            seen.add(reading.mark)
            axes.axvline(reading.seconds, color="grey", linewidth=0.6)
            axes.text(reading.seconds, axes.get_ylim()[1], f" {reading.mark}", rotation=90, va="top", fontsize=8)
    for segment in segments(readings):
        if segment.mark == IDLE and segment.mean_w is not None:
            axes.axhline(segment.mean_w, color="tab:green", linestyle="--", label=f"idle {segment.mean_w:.2f} W")
            axes.legend()
    axes.set_xlabel("seconds")
    axes.set_ylabel("watts")
    axes.set_title(source)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as exc:
        raise PlotImpossible(f"{path} cannot be drawn: {exc}") from exc
