"""A device's messages to and from the host of the general model: between the work's thread and the loop's.

The work says and hears whole messages; the loop publishes and takes pieces of them (edge_runtime.wire.fragments).
What is lost on the way is asked for again by the work, so nothing here is kept over a lost connection.
"""

import secrets
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from edge_runtime.agent.work import WorkCancelled
from edge_runtime.wire.fragments import Assembler, to_fragments


class FragmentChannel:
    """See the module. `interrupt` tells the loop that there is something to publish."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._number = secrets.randbits(32)  # an earlier process had others
        self._out: deque[bytes] = deque()
        self._came: SimpleQueue[bytes | None] = SimpleQueue()
        self._assembler: Assembler | None = None
        self._cancelled = False

    # The work's side

    def open(self, longest_bytes: int) -> None:
        """A round begins, in which no message is longer than this; what came before is forgotten."""
        self._came = SimpleQueue()
        self._assembler = Assembler(longest_bytes)

    def send(self, data: bytes) -> None:
        """Send without waiting. Raises MessageInvalid for a message that is too long."""
        self._number += 1
        self._out.extend(to_fragments(self._number, data))
        self._interrupt()

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None if none comes in that time. Raises WorkCancelled."""
        try:
            data = None if self._cancelled else self._came.get(timeout=timeout_s)
        except Empty:
            return None
        if data is None:
            raise WorkCancelled
        return data

    # The loop's side

    def begin(self) -> None:
        """Work begins."""
        self._cancelled = False
        self._assembler = None
        self._out.clear()

    def cancel(self) -> None:
        """The work is no longer wanted: wake it."""
        self._cancelled = True
        self._came.put(None)

    def deliver(self, piece: bytes) -> None:
        """A piece came. Raises MessageInvalid for one that cannot be; without a round it is dropped."""
        if self._assembler is not None and (data := self._assembler.accept(piece)) is not None:
            self._came.put(data)

    def take(self) -> list[bytes]:
        """The pieces that are to be published, once."""
        return [self._out.popleft() for _ in range(len(self._out))]
