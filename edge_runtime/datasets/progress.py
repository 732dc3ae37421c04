"""Progress of making data, on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """Where progress is shown: a terminal, or nowhere."""

    def show(self, what: str, done: int, total: int) -> None:
        """So much of something is done."""
        ...


class _Silent:
    def show(self, what: str, done: int, total: int) -> None:
        """Show nothing."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[Bar]:
    """Bars on the terminal, if standard error is one."""
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    class Bars:
        def __init__(self, progress: Progress) -> None:
            self.progress = progress
            self.bars: dict[str, TaskID] = {}

        def show(self, what: str, done: int, total: int) -> None:
            if what not in self.bars:
                self.bars[what] = self.progress.add_task(what, total=total)
            self.progress.update(self.bars[what], completed=done)

    with Progress(console=Console(stderr=True)) as progress:
        yield Bars(progress)
