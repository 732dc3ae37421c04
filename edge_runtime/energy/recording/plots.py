"""Pictures of recordings. matplotlib is a workstation's: a board records, and draws elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_runtime.energy.recording.recording import IDLE, Row, segments


class PlotImpossible(Exception):
    """There is no matplotlib, or the file cannot be written; the sentence says which."""


def recording(rows: Sequence[Row], source: str, path: Path) -> None:
    """Watts over time, the marks, and the idle baseline. Raises PlotImpossible."""
    figure = _figure()
    axes = figure.subplots()
    axes.plot([row.seconds for row in rows], [row.watts for row in rows], linewidth=0.8, color="tab:blue")
    seen: set[str] = set()
    for row in rows:
        if row.mark not in seen:
            seen.add(row.mark)
            axes.axvline(row.seconds, color="grey", linewidth=0.6)
            axes.text(row.seconds, axes.get_ylim()[1], f" {row.mark}", rotation=90, va="top", fontsize=8)
    for segment in segments(rows):
        if segment.mark == IDLE and segment.mean_w is not None:
            axes.axhline(segment.mean_w, color="tab:green", linestyle="--", label=f"idle {segment.mean_w:.2f} W")
            axes.legend()
    axes.set_xlabel("seconds")
    axes.set_ylabel("watts")
    axes.set_title(source)
    _save(figure, path)


def _figure(height: float = 5) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise PlotImpossible("matplotlib is not installed: draw on the workstation, from the CSV file") from exc
    return Figure(figsize=(10, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as exc:
        raise PlotImpossible(f"{path} cannot be drawn: {exc}") from exc
