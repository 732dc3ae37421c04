"""Progress of an experiment: bars in a terminal, a line for each finished run elsewhere."""

import sys
import threading
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from broker_server.simulation.summary import Summary


def line(run: str, summary: Summary) -> str:
    """Return a finished run in one line."""
    loss = (summary.test_loss or {}).get("total")
    return (
        f"{run}: test loss {'not measured' if loss is None else f'{loss:.4f}'}, "
        f"{'?' if summary.compute_s is None else f'{summary.compute_s:.0f}'} CPU s, {len(summary.groups)} groups"
    )


class RunLines:
    """A line for each finished run."""

    def begin(self, runs: int) -> None:
        """Begin to show this number of runs."""
        print(f"{runs} runs", flush=True)

    def step(self, run: str, text: str) -> None:
        """Not shown."""

    def done(self, run: str, summary: Summary) -> None:
        """Show a run that has finished."""
        print(line(run, summary), flush=True)


class RunBars(AbstractContextManager["RunBars"]):
    """A bar for the whole, and a line for what each seed is doing. May be used from several threads."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=sys.stderr),
        )
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        self._whole = self._progress.add_task("runs", text="", total=None)

    def __enter__(self) -> "RunBars":  # noqa: PYI034 - typing has no Self before 3.11
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, runs: int) -> None:
        """Begin to show this number of runs."""
        self._progress.update(self._whole, total=runs)

    def step(self, run: str, text: str) -> None:
        """Show how far a run is."""
        with self._lock:
            self._texts[run] = f"{run}: {text}"
            self._progress.update(self._whole, text=" | ".join(self._texts.values()))

    def done(self, run: str, summary: Summary) -> None:
        """Show a run that has finished."""
        with self._lock:
            self._texts.pop(run, None)
            self._progress.update(self._whole, advance=1)
            self._progress.console.print(line(run, summary), highlight=False)
