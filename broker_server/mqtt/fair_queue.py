"""A queue in which every source has its turn: one item of each that has any, and again.

So a source that floods the queue makes itself wait, and others at most one item of it for each of their own. The items
of one source keep their order.
"""

# coverage: every branch

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items T with a cost in bytes each, by source."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of all items."""
        self._queues: dict[str, deque[tuple[T, int]]] = {}  # the source whose turn it is comes first
        self._bytes: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def bytes_of(self, source: str) -> int:
        """Return the bytes of a source's items."""
        return self._bytes.get(source, 0)

    def put(self, source: str, item: T, cost_bytes: int) -> None:
        """Add an item behind those of its source."""
        self._queues.setdefault(source, deque()).append((item, cost_bytes))
        self._bytes[source] = self.bytes_of(source) + cost_bytes
        self.bytes += cost_bytes

    def get(self) -> tuple[str, T]:
        """Take the next item, with its source. The queue must not be empty."""
        source = next(iter(self._queues))
        queue = self._queues.pop(source)
        item, cost_bytes = queue.popleft()
        self.bytes -= cost_bytes
        self._bytes[source] -= cost_bytes
        if queue:
            self._queues[source] = queue  # behind the others
        else:
            del self._bytes[source]
        return source, item
