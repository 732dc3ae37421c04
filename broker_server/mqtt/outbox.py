"""The outbox: the messages that one client has yet to get, bounded in bytes.

Rules
- Order is kept. At most `window` QoS 1 messages are on their way; they and what is queued count as bytes together.
- From `cap_bytes` on the outbox is full: QoS 0 is not taken any more, QoS 1 is (its publisher is held back
  meanwhile), up to twice the cap, which no number of publishers gets over. While the client is away nothing is taken
  over the cap, and no QoS 0.
- A message that was sent and not acknowledged is sent again after a reconnect, marked DUP, and never before.
"""

# coverage: every branch

from collections import deque
from dataclasses import dataclass

from broker_server.mqtt.packets import Publish

# What a queued message costs in memory beyond its topic and payload, roughly.
_OVERHEAD_BYTES = 256
_LAST_PACKET_ID = 0xFFFF


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message to be routed. The payload is shared by all outboxes that hold it."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    source: str = ""
    """The client id of its publisher; empty for the server's own link."""

    @property
    def cost_bytes(self) -> int:
        """Return the memory that keeping it takes."""
        return len(self.topic) + len(self.payload) + _OVERHEAD_BYTES


class Outbox:
    """A bounded queue and a window of unacknowledged messages."""

    def __init__(self, *, cap_bytes: int, window: int) -> None:
        self.held_bytes = 0
        self._cap_bytes = cap_bytes
        self._window = window
        self._queue: deque[QueuedMessage] = deque()
        self._flying: dict[int, QueuedMessage] = {}
        self._again: deque[int] = deque()
        self._last_id = 0

    @property
    def is_full(self) -> bool:
        """Return whether publishers should wait."""
        return self.held_bytes >= self._cap_bytes

    @property
    def is_relieved(self) -> bool:
        """Return whether publishers that wait may go on."""
        return self.held_bytes <= self._cap_bytes // 2

    def __len__(self) -> int:
        return len(self._queue) + len(self._flying)

    def offer(self, message: QueuedMessage, *, is_away: bool = False) -> bool:
        """Take a message in; return False if there is no room for it."""
        if message.qos == 0 and (is_away or self.is_full):
            return False
        limit = self._cap_bytes if is_away else 2 * self._cap_bytes
        if self.held_bytes + message.cost_bytes > limit:
            return False
        self._queue.append(message)
        self.held_bytes += message.cost_bytes
        return True

    def take(self) -> Publish | None:
        """Return the next packet to send; None if there is none, or none before an acknowledgement comes."""
        while self._again:
            packet_id = self._again.popleft()
            if message := self._flying.get(packet_id):
                return _packet(message, packet_id, dup=True)
        if not self._queue or (self._queue[0].qos and len(self._flying) >= self._window):
            return None
        message = self._queue.popleft()
        if message.qos == 0:
            self.held_bytes -= message.cost_bytes
            return _packet(message, 0)
        packet_id = self._free_id()
        self._flying[packet_id] = message
        return _packet(message, packet_id)

    def acknowledge(self, packet_id: int) -> bool:
        """Forget a message that arrived; return whether one with this id was on its way."""
        message = self._flying.pop(packet_id, None)
        if message is None:
            return False
        self.held_bytes -= message.cost_bytes
        return True

    def restart(self) -> None:
        """Start over on a new connection: unacknowledged messages go first, again."""
        self._again = deque(self._flying)

    def clear(self) -> int:
        """Forget everything; return how many messages that was."""
        count = len(self)
        self._queue.clear()
        self._flying.clear()
        self._again.clear()
        self.held_bytes = 0
        return count

    def _free_id(self) -> int:
        while True:
            self._last_id = self._last_id % _LAST_PACKET_ID + 1
            if self._last_id not in self._flying:
                return self._last_id


def _packet(message: QueuedMessage, packet_id: int, *, dup: bool = False) -> Publish:
    return Publish(
        topic=message.topic,
        payload=message.payload,
        qos=message.qos,
        retain=message.retain,
        dup=dup,
        packet_id=packet_id,
    )
