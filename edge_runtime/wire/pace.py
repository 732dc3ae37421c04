"""The pace of one direction of a line: its measured rate, and what follows from it for what is under way.

The rate is bytes over busy time, both fading with FADE_S: time in which nothing was under way does not count, and that
data comes in bursts does not matter. So much is under way as passes in WINDOW_S, and so much goes in one message as
passes in MESSAGE_S: a ping or a control message is never further behind than that, and a connection that is lost costs
no more. Where nothing was measured the window is small and grows with every answer, as TCP's does.
"""

# coverage: every branch

import math

from edge_runtime.wire.blob import CHUNK_BYTES, MESSAGE_BYTES
from edge_runtime.wire.link import Link

FADE_S = 10.0
WINDOW_S = 5.0
MESSAGE_S = 1.6
MIN_WINDOW_BYTES = 5 * CHUNK_BYTES
MAX_WINDOW_BYTES = 2 << 20
FIRST_WINDOW_BYTES = 8 * CHUNK_BYTES
BELIEVED_S = 1.0
SHORTEST_S = 1e-3
"""Two arrivals in the same tick of the clock are not infinitely fast."""


class Pace:
    """A rate that is being measured. `now_s` is any clock that only goes forward."""

    def __init__(self, bytes_per_s: float | None = None, *, most_window_bytes: int = MAX_WINDOW_BYTES) -> None:
        """Go on from a rate that was measured before, perhaps by an earlier process.

        It holds until a second was measured, or as much as fits its window.
        """
        self.most_bytes = MESSAGE_BYTES
        """The longest run in one message that the line's ends allow."""
        self._most_window_bytes = most_window_bytes
        self._before = bytes_per_s
        self._bytes = self._seconds = 0.0
        self._since_s: float | None = None

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None while nothing was measured."""
        before = self._before
        if before is not None and self._seconds < BELIEVED_S and self._bytes < self._window_of(before):
            return before
        return self._bytes / max(self._seconds, SHORTEST_S) if self._bytes else None

    @property
    def window_bytes(self) -> int:
        """How much may be under way."""
        rate = self.bytes_per_s
        return FIRST_WINDOW_BYTES if rate is None else self._window_of(rate)

    @property
    def message_bytes(self) -> int:
        """How much may go in one message."""
        rate = self.bytes_per_s
        fitting = FIRST_WINDOW_BYTES // 2 if rate is None else max(2 * CHUNK_BYTES, int(MESSAGE_S * rate))
        return min(self.most_bytes, fitting)

    @property
    def window_s(self) -> float:
        """The seconds that a full window takes; 0 while nothing was measured."""
        rate = self.bytes_per_s
        return 0.0 if rate is None else self.window_bytes / rate

    def _window_of(self, bytes_per_s: float) -> int:
        return int(min(self._most_window_bytes, max(MIN_WINDOW_BYTES, WINDOW_S * bytes_per_s)))

    def begin(self, now_s: float) -> None:
        """Begin to measure, where nothing was under way."""
        if self._since_s is None:
            self._since_s = now_s

    def pause(self) -> None:
        """Measure no more until something is under way again."""
        self._since_s = None

    def on_bytes(self, size: int, now_s: float) -> None:
        """Count what has passed; nothing counts that was not waited for."""
        if self._since_s is None:
            return
        took_s, self._since_s = now_s - self._since_s, now_s
        kept = math.exp(-took_s / FADE_S)
        self._bytes = self._bytes * kept + size
        self._seconds = self._seconds * kept + took_s


class Handover:
    """What is handed to a link: no more than its pace allows is published and not acknowledged by the broker."""

    def __init__(self, link: Link, pace: Pace) -> None:
        self.pace = pace
        self._link = link
        self._acknowledged = link.bytes_acknowledged

    def measure(self, now_s: float, *, waits: bool) -> None:
        """Take in what the broker has acknowledged since; `waits` says whether there is something to be handed over."""
        acknowledged = self._link.bytes_acknowledged
        if acknowledged != self._acknowledged:
            self.pace.on_bytes(acknowledged - self._acknowledged, now_s)
            self._acknowledged = acknowledged
        if waits or self._link.bytes_out > acknowledged:
            self.pace.begin(now_s)
        else:
            self.pace.pause()

    @property
    def has_room(self) -> bool:
        """Whether more may be handed over now."""
        return self._link.bytes_out - self._link.bytes_acknowledged < self.pace.window_bytes


def halved(too_large_bytes: int) -> int:
    """Return the longest run to send in one message where one of so many bytes was too large for the broker."""
    return max(CHUNK_BYTES, too_large_bytes // 2 // CHUNK_BYTES * CHUNK_BYTES)
