"""Simulated time: events in an order that depends on their times and the order of scheduling alone."""

# coverage: every branch

import heapq
from collections.abc import Callable


class Timeline:
    """A clock that moves from one event to the next. Of events at the same time, the first asked for comes first."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> float:
        """Return simulated seconds since the beginning."""
        return self.now_s

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Schedule an event in some seconds."""
        self.at(self.now_s + seconds, event)

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Schedule an event at a time; one in the past happens now."""
        heapq.heappush(self._events, (max(time_s, self.now_s), self._count, event))
        self._count += 1

    def pass_by(self, seconds: float) -> None:
        """Let time pass without events: those that were due meanwhile are late."""
        self.now_s += seconds

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._events:
            return False
        time_s, _, event = heapq.heappop(self._events)
        self.now_s = max(self.now_s, time_s)
        event()
        return True
