"""How far the writing is: a bar in a terminal, nothing where nobody looks."""

from collections.abc import Iterator
from contextlib import contextmanager

from devices.flashing.image import Progress


@contextmanager
def bar(title: str, size_bytes: int | None) -> Iterator[Progress]:
    """A bar on the terminal with rate and time left; nothing where stderr is none, or where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield lambda _count: None
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("  {task.description:13}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=size_bytes)
        yield lambda count: bars.advance(task, count)
