"""The progress of writing: a bar in a terminal, and nothing elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from devices.flashing.image import Progress


@contextmanager
def bar(title: str, size_bytes: int | None) -> Iterator[Progress]:
    """Show a bar with rate and time left; nothing where standard error is no terminal, or rich is not installed."""
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
