"""Progress of making data, on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ProgressBar(Protocol):
    """A seam: shows progress in a terminal, or nowhere."""

    def show(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `what` are done."""
        ...


class _Silent:
    def show(self, what: str, done: int, total: int) -> None:
        """Show nothing."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[ProgressBar]:
    """Give bars on the terminal, if standard error is one."""
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    class _Bars:
        def __init__(self, progress: Progress) -> None:
            self.progress = progress
            self.bars: dict[str, TaskID] = {}

        def show(self, what: str, done: int, total: int) -> None:
            if what not in self.bars:
                self.bars[what] = self.progress.add_task(what, total=total)
            self.progress.update(self.bars[what], completed=done)

    with Progress(console=Console(stderr=True)) as progress:
        yield _Bars(progress)
