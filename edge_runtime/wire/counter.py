"""A counter that only grows, over restarts and clocks that go back: a message's number is never used twice.

It follows the clock where that is ahead, and a file has a number that it has not reached yet; so it is written about
once a minute, and not with each message.
"""

# coverage: every branch

import time
from collections.abc import Callable
from pathlib import Path

from edge_runtime.wire.files import write_atomic

AHEAD = 60_000_000
"""How far the file is ahead: a minute, in microseconds."""
_LIMIT = 2**63


class Counter:
    """Numbers, each larger than all before it. `path` is its own. `now_us` is the time in microseconds.

    Raises OSError as the file system does; what the file has that is no number counts as 0.
    """

    def __init__(self, path: Path, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._path = path
        self._now_us = now_us
        try:
            text = path.read_text()
            self._last = int(text) if text.isdecimal() and len(text) < len(str(_LIMIT)) else 0
        except (FileNotFoundError, UnicodeDecodeError):
            self._last = 0
        self._reserved = self._last

    def next(self) -> int:
        """Return the next number."""
        self._last = max(self._last + 1, self._now_us())
        if self._last >= self._reserved:
            self._reserved = self._last + AHEAD
            write_atomic(self._path, str(self._reserved).encode(), mode=0o600)
        return self._last
