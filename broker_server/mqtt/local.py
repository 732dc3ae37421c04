"""The server's own end of the broker: a Link in the same process, without a socket.

Payloads are handed over, not copied. The inbox is fair and bounded: every publisher has its turn (fair_queue.py), and
one that has SHARE of `inbox_bytes` in it, or anyone where it has `inbox_bytes`, is held back by the hub until `receive`
has drained that to half. So a device that floods the server waits for itself. The outbox is bounded: while a slow
client holds this link back, messages wait, and over `outbox_bytes` `publish` raises LinkFull. So go on receiving, and
publish again later.
"""

# coverage: every branch

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from broker_server.mqtt.fair_queue import FairQueue
from broker_server.mqtt.hub import Hub
from broker_server.mqtt.outbox import QueuedMessage
from broker_server.mqtt.topics import is_filter, is_topic
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Event, LinkFull, packet_bytes

SHARE = 1 / 16
"""The part of the inbox that one publisher may fill."""


class _Party:
    """The half of a local link that the hub deals with, on the broker's thread."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop, inbox_bytes: int, outbox_bytes: int) -> None:
        self.hub = hub
        self.loop = loop
        self.changed = threading.Condition()  # guards all that follows
        self.inbox: FairQueue[QueuedMessage | Connected | Disconnected] = FairQueue()
        self.inbox.put("", Connected(), 0)
        self.inbox_cap_bytes = inbox_bytes
        self.share_bytes = int(SHARE * inbox_bytes)
        self.outbox: deque[QueuedMessage] = deque()
        self.outbox_bytes = 0
        self.bytes_passed = 0
        self.outbox_cap_bytes = outbox_bytes
        self.is_scheduled = False
        self.is_held = False
        self.is_closed = False
        self.is_interrupted = False

    def is_full_for(self, source: str) -> bool:
        return self.inbox.bytes >= self.inbox_cap_bytes or self.inbox.bytes_of(source) >= self.share_bytes

    def offer(self, message: QueuedMessage) -> bool:
        with self.changed:
            limit = self.inbox_cap_bytes * (2 if message.qos else 1)
            if self.inbox.bytes + message.cost_bytes > limit:
                return False
            self.inbox.put(message.source, message, message.cost_bytes)
            self.changed.notify()
        return True

    def hold(self, is_held: bool) -> None:
        self.is_held = is_held
        if not is_held:
            self.loop.call_soon(self.pump)

    def pump(self) -> None:
        """Publish what waits, until a slow client holds this link back."""
        with self.changed:
            self.is_scheduled = False
        while not self.is_held:
            with self.changed:
                if not self.outbox:
                    return
                message = self.outbox[0]
            if not self.hub.publish(message, self, self.loop.time()):
                return
            with self.changed:
                self.outbox.popleft()
                self.outbox_bytes -= message.cost_bytes
                self.bytes_passed += packet_bytes(message.topic, message.payload)

    def on_stopped(self) -> None:
        """Tell the link's owner that the broker has stopped."""
        with self.changed:
            self.inbox.put("", Disconnected("the broker has stopped", refused=False), 0)
            self.changed.notify()


class LocalLink:
    """A Link to the broker in this process; see edge_runtime.wire.link.Link. Made by EmbeddedBroker.link.

    What arrives is counted when it is received, what goes out when it is accepted, once however many subscribe to it.
    """

    def __init__(self, party: _Party) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self._party = party

    @property
    def bytes_acknowledged(self) -> int:
        """Bytes of the messages that the broker has passed on."""
        return self._party.bytes_passed

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message at QoS 1. Raises LinkFull if slow clients leave no room."""
        if not is_topic(topic):
            raise ValueError(f"{topic[:200]!r} is not a topic to publish to")
        party = self._party
        message = QueuedMessage(topic, payload, qos=1, retain=retain)
        with party.changed:
            if party.outbox_bytes + message.cost_bytes > party.outbox_cap_bytes:
                raise LinkFull(f"{party.outbox_bytes} bytes wait for slow clients: receive, then publish again")
            party.outbox.append(message)
            party.outbox_bytes += message.cost_bytes
            self.bytes_out += packet_bytes(topic, payload)
            is_scheduled, party.is_scheduled = party.is_scheduled, True
        if not is_scheduled:
            self._on_loop(party.pump)

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1: to what is published from now on, and what is retained."""
        for topic_filter in filters:
            if not is_filter(topic_filter):
                raise ValueError(f"{topic_filter[:200]!r} is not a topic filter")
            self._on_loop(self._party.hub.subscribe, self._party, topic_filter, 1)

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event; None if none comes in `timeout_s` seconds (None: no limit) or the link is closed."""
        party = self._party
        with party.changed:
            party.changed.wait_for(lambda: party.inbox or party.is_closed or party.is_interrupted, timeout_s)
            party.is_interrupted = False
            if not party.inbox:
                return None
            source, event = party.inbox.get()
            if not isinstance(event, QueuedMessage):
                return event
            cost_bytes = event.cost_bytes
            is_relieved = _passes(party.inbox.bytes, cost_bytes, party.inbox_cap_bytes // 2) or _passes(
                party.inbox.bytes_of(source), cost_bytes, party.share_bytes // 2
            )
        if is_relieved:
            self._on_loop(party.hub.on_drained, party)
        self.bytes_in += packet_bytes(event.topic, event.payload)
        return Delivery(event.topic, event.payload)

    def interrupt(self) -> None:
        """Let `receive` return None now, or the next time that it would wait."""
        with self._party.changed:
            self._party.is_interrupted = True
            self._party.changed.notify_all()

    def close(self) -> None:
        """Leave the broker, once what was published has been passed on. No will."""
        party = self._party
        self._on_loop(party.pump)
        self._on_loop(party.hub.drop, party)
        with party.changed:
            party.is_closed = True
            party.changed.notify_all()

    def _on_loop(self, call: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the broker has stopped; Disconnected says so
            self._party.loop.call_soon_threadsafe(call, *args)


def _passes(now_bytes: int, taken_bytes: int, half_bytes: int) -> bool:
    """Return whether taking so many bytes has left half of what holds publishers back."""
    return now_bytes <= half_bytes < now_bytes + taken_bytes


def local_link(
    hub: Hub, loop: asyncio.AbstractEventLoop, *, inbox_bytes: int, outbox_bytes: int
) -> tuple[LocalLink, Callable[[], None]]:
    """Return a link to `hub`, which runs on `loop`, and a function to call there when the broker stops."""
    party = _Party(hub, loop, inbox_bytes, outbox_bytes)
    return LocalLink(party), party.on_stopped
