"""A device's split-learning messages, between the thread of the work and the loop's thread.

The work sends and receives complete messages. The loop publishes and receives their fragments
(edge_runtime.wire.fragments). The work sends again what is lost on the way, so nothing here outlives a connection.
"""

import secrets
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from edge_runtime.agent.work import WorkCancelled
from edge_runtime.wire.fragments import Assembler, to_fragments


class FragmentChannel:
    """Passes messages between the two threads. `interrupt` wakes the loop when there is something to publish."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._number = secrets.randbits(32)  # differs from the numbers of an earlier process
        self._outgoing: deque[bytes] = deque()
        self._received: SimpleQueue[bytes | None] = SimpleQueue()
        self._assembler: Assembler | None = None
        self._cancelled = False

    # On the thread of the work

    def open(self, max_message_bytes: int) -> None:
        """Begin a round, in which no message is longer than this; drop what was received before."""
        self._received = SimpleQueue()
        self._assembler = Assembler(max_message_bytes)

    def send(self, data: bytes) -> None:
        """Send without waiting. Raises MessageInvalid for a message that is too long."""
        self._number += 1
        self._outgoing.extend(to_fragments(self._number, data))
        self._interrupt()

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next message, or None if none comes in that time. Raises WorkCancelled."""
        try:
            data = None if self._cancelled else self._received.get(timeout=timeout_s)
        except Empty:
            return None
        if data is None:
            raise WorkCancelled
        return data

    # On the loop's thread

    def begin(self) -> None:
        """Make ready for new work."""
        self._cancelled = False
        self._assembler = None
        self._outgoing.clear()

    def cancel(self) -> None:
        """Wake the work, which is no longer wanted."""
        self._cancelled = True
        self._received.put(None)

    def deliver(self, fragment: bytes) -> None:
        """Take a fragment that has arrived; without a round it is dropped. Raises MessageInvalid."""
        if self._assembler is not None and (data := self._assembler.accept(fragment)) is not None:
            self._received.put(data)

    def take(self) -> list[bytes]:
        """Return the fragments to publish, and remove them."""
        return [self._outgoing.popleft() for _ in range(len(self._outgoing))]
