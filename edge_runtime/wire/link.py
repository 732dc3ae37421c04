"""The link: the seam through which both sides use MQTT, implemented in `mqtt.py`.

`publish` never blocks: when the outbox is full it raises LinkFull, and the caller goes on receiving and tries again.
A PUBACK means that the broker has a message, not that anyone read it: results are acknowledged by messages of this
protocol, and requested again.
"""

# coverage: every branch

from dataclasses import dataclass
from typing import Protocol


class LinkFull(RuntimeError):
    """The outbox is full: receive for a while, then publish again."""


@dataclass(frozen=True)
class Delivery:
    """A message that arrived."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Connected:
    """The broker accepted the connection; subscriptions have been renewed."""


@dataclass(frozen=True)
class Disconnected:
    """The connection is lost or could not be made. With `refused` the broker refused it, and retrying will not help.

    With `too_large_bytes` the broker has cut it again and again on a message of so many bytes, which was dropped.
    """

    reason: str
    refused: bool
    too_large_bytes: int | None = None


Event = Delivery | Connected | Disconnected


class Link(Protocol):
    """One end's connection to the broker. A Protocol, so that tests and the server's own process need no socket.

    `bytes_out` counts the messages that `publish` accepted and `bytes_in` those that `receive` returned, each by
    `packet_bytes`: acknowledgements, pings, repetitions and TLS are not included. What was published and not
    acknowledged by the broker yet is under way: `bytes_out - bytes_acknowledged`.
    """

    @property
    def bytes_in(self) -> int:
        """Bytes of the messages that `receive` returned."""
        ...

    @property
    def bytes_out(self) -> int:
        """Bytes of the messages that `publish` accepted."""
        ...

    @property
    def bytes_acknowledged(self) -> int:
        """Bytes of those that the broker has acknowledged, or that were dropped as too large for it."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message at QoS 1. Raises LinkFull if the outbox has no room."""
        ...

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1, now and after each reconnect."""
        ...

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event; None if there is none within `timeout_s` seconds (None: no limit).

        None as well where the link is closed or `interrupt` was called.
        """
        ...

    def interrupt(self) -> None:
        """Let `receive` return None now, or the next time that it would wait. May be called from any thread."""
        ...

    def close(self) -> None:
        """Disconnect cleanly: the will is not sent."""
        ...


class PassingLink:
    """A Link that passes everything through to another one: what changes messages on their way derives from it."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def bytes_in(self) -> int:
        """Bytes that were received."""
        return self._link.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes that were sent."""
        return self._link.bytes_out

    @property
    def bytes_acknowledged(self) -> int:
        """Bytes that the broker has."""
        return self._link.bytes_acknowledged

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message. Raises LinkFull."""
        self._link.publish(topic, payload, retain=retain)

    def subscribe(self, *filters: str) -> None:
        """Subscribe."""
        self._link.subscribe(*filters)

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event, or None."""
        return self._link.receive(timeout_s)

    def interrupt(self) -> None:
        """Let `receive` return."""
        self._link.interrupt()

    def close(self) -> None:
        """Disconnect."""
        self._link.close()


def packet_bytes(topic: str, payload: bytes) -> int:
    """Return the bytes of the QoS 1 PUBLISH that carries `payload` to `topic`: fixed header, topic, id, payload."""
    rest = 2 + len(topic.encode()) + 2 + len(payload)
    return 1 + max(1, (rest.bit_length() + 6) // 7) + rest
