"""A broker and its links in memory: messages take modelled time, and are otherwise those of the field.

Rules
- A message leaves when its sender's uplink is free, takes its bytes at the uplink's speed, the latency, and its bytes
  at each receiver's downlink, one after another: order is kept on a link. The server's own link is instant.
- A link that is lost drops what is under way to it and what is published on it; the broker publishes `offline` for it.
"""

# coverage: every branch

import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from broker_server.mqtt.router import Router
from broker_server.simulation.timeline import Timeline
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Event, packet_bytes
from edge_runtime.wire.messages import Status, encode

if TYPE_CHECKING:
    from collections.abc import Callable


class LinkSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a link is."""

    up_bytes_per_s: float = math.inf
    down_bytes_per_s: float = math.inf
    latency_s: float = 0.0


class Network:
    """The broker: who gets what, and when."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.router: Router[MemoryLink] = Router()
        self._links = 0

    def link(self, speed: LinkSpeed, *, will: str | None = None) -> "MemoryLink":
        """Return a new connected link. `will` is the topic of the message that is published when it is lost."""
        self._links += 1
        link = MemoryLink(self, self._links, speed, will)
        self.timeline.after(0.0, partial(link.deliver, Connected()))
        return link

    def send(self, sender: "MemoryLink", topic: str, payload: bytes) -> None:
        """Publish on a sender's link."""
        size = packet_bytes(topic, payload)
        left_s = sender.up.take(self.timeline.now_s, size)
        for receiver in sorted(self.router.subscribers(topic), key=lambda link: link.number):
            come_s = receiver.down.take(left_s + sender.speed.latency_s + receiver.speed.latency_s, size)
            self.timeline.at(come_s, partial(receiver.deliver, Delivery(topic, payload), receiver.era))


class _Pipe:
    """One direction of a link."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def take(self, now_s: float, size_bytes: int) -> float:
        """When something that may begin now has passed."""
        self._free_s = max(now_s, self._free_s) + size_bytes / self._bytes_per_s
        return self._free_s


class MemoryLink:
    """A Link of a simulation; see edge_runtime.wire.link.Link. `wake` is called when there is something to receive."""

    def __init__(self, network: Network, number: int, speed: LinkSpeed, will: str | None) -> None:
        self.number = number
        """Its place among those that get the same message."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.wake: Callable[[], object] = lambda: None
        self.speed = speed
        self.up, self.down = _Pipe(speed.up_bytes_per_s), _Pipe(speed.down_bytes_per_s)
        self.era = 0
        """Counts the connections: what was sent to an earlier one is lost."""
        self._network = network
        self._will = will
        self._online = True
        self._inbox: deque[Event] = deque()

    @property
    def bytes_acknowledged(self) -> int:
        """All that was sent: the broker has no memory of its own to fill."""
        return self.bytes_out

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:  # noqa: ARG002
        """Send a message; it is lost while the link is."""
        self.bytes_out += packet_bytes(topic, payload)
        if self._online:
            self._network.send(self, topic, payload)

    def subscribe(self, *filters: str) -> None:
        """Subscribe to what is published from now on."""
        for topic_filter in filters:
            self._network.router.subscribe(self, topic_filter, 1)

    def receive(self, timeout_s: float | None) -> Event | None:  # noqa: ARG002
        """Return the next event; None if there is none. Never waits."""
        if not self._inbox:
            return None
        event = self._inbox.popleft()
        if isinstance(event, Delivery):
            self.bytes_in += packet_bytes(event.topic, event.payload)
        return event

    def interrupt(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Leave the broker."""
        self._network.router.drop(self)

    def deliver(self, event: Event, era: int | None = None) -> None:
        """Something arrives."""
        if era is None or (era == self.era and self._online):
            self._inbox.append(event)
            self.wake()

    def lose(self, seconds: float) -> None:
        """Lose the connection for some seconds; the broker publishes the will."""
        if not self._online:
            return
        self._online = False
        self.era += 1
        if self._will is not None:
            self._network.send(self, self._will, encode(Status(state="offline")))
        self.deliver(Disconnected("the simulated link is down", refused=False))
        self._network.timeline.after(seconds, self._return)

    def _return(self) -> None:
        self._online = True
        self.deliver(Connected())
