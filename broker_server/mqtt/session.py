"""One connection's protocol state, and one client's session, without I/O or clock.

A connection is FRESH until its CONNECT was accepted, then LIVE, then CLOSED; `_ALLOWED` is the complete table of
what may arrive when. A session belongs to a client id and may outlive connections.
"""

# coverage: every branch

from enum import Enum, auto
from typing import Protocol

from broker_server.mqtt.auth import Principal
from broker_server.mqtt.codec import publish_header
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.outbox import Outbox, QueuedMessage
from broker_server.mqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Publish,
    Pubrel,
    Subscribe,
    Unsubscribe,
    Will,
)


class ProtocolViolated(ValueError):
    """A packet that is well formed and may not come now. `reason` is a fixed word."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class ConnectionPhase(Enum):
    """The states of a connection."""

    FRESH = auto()
    LIVE = auto()
    CLOSED = auto()


_ALLOWED: dict[ConnectionPhase, frozenset[type[Packet]]] = {
    ConnectionPhase.FRESH: frozenset({Connect}),
    ConnectionPhase.LIVE: frozenset({Publish, Puback, Pubrel, Subscribe, Unsubscribe, Pingreq, Disconnect}),
    ConnectionPhase.CLOSED: frozenset(),
}


class Connection:
    """One connection's protocol state. An illegal packet raises ProtocolViolated and changes nothing."""

    def __init__(self, *, connect_timeout_s: float, now_s: float) -> None:
        self.phase = ConnectionPhase.FRESH
        self.principal: Principal | None = None
        self._will: Will | None = None
        self._patience_s: float | None = None
        self._deadline_s: float | None = now_s + connect_timeout_s
        self._expires_s: float | None = None

    def receive(self, packet: Packet, now_s: float) -> None:
        """Check that a packet may come now, and note that the client lives. Raises ProtocolViolated."""
        if type(packet) not in _ALLOWED[self.phase]:
            raise ProtocolViolated("order", f"{type(packet).__name__} may not come while {self.phase.name}")
        if isinstance(packet, Disconnect):
            self._will = None
        if self.phase is ConnectionPhase.LIVE:
            self.touch(now_s)

    def admit(self, connect: Connect, principal: Principal, now_s: float) -> None:
        """Go live: the CONNECT was accepted."""
        self.phase = ConnectionPhase.LIVE
        self.principal = principal
        self._will = connect.will
        # Section 3.1.2.10: one and a half times the keepalive; 0 turns it off.
        self._patience_s = connect.keepalive_s * 1.5 or None
        self._expires_s = None if principal.valid_for_s is None else now_s + principal.valid_for_s
        self.touch(now_s)

    def touch(self, now_s: float) -> None:
        """Note a sign of life, also for a client that was held back and could not give one."""
        self._deadline_s = None if self._patience_s is None else now_s + self._patience_s

    def overdue(self, now_s: float, *, is_held: bool = False) -> str | None:
        """Return a fixed word for why the connection is to be closed now, or None. A client held back may be silent."""
        if self._expires_s is not None and now_s >= self._expires_s:
            return "token-expired"
        if self._deadline_s is None or now_s < self._deadline_s:
            return None
        if self.phase is ConnectionPhase.FRESH:
            return "connect-timeout"
        return None if is_held else "keepalive"

    def close(self) -> Will | None:
        """End the connection; return the will if it is to be published."""
        self.phase = ConnectionPhase.CLOSED
        will, self._will = self._will, None
        return will


class Peer(Protocol):
    """A socket, as the logic sees it. A Protocol, so that the logic is tested without one."""

    def send(self, header: bytes, payload: bytes = b"") -> None:
        """Write, never blocking."""
        ...

    def hold(self, is_held: bool) -> None:
        """Stop reading, or go on. Packets that were read already wait too."""
        ...

    def close(self, *, is_polite: bool) -> None:
        """Close: after what was written has gone out, or at once."""
        ...


class ClientSession:
    """The broker's state of a client id: the messages that it has yet to get, and its peer while it is connected."""

    def __init__(self, client_id: str, *, is_clean: bool, limits: Limits) -> None:
        self.client_id = client_id
        self.is_clean = is_clean
        self.outbox = Outbox(cap_bytes=limits.queue_bytes, window=limits.window)
        self.away_since_s: float | None = None
        self.received: set[int] = set()
        """The ids of QoS 2 messages that have come and may come again."""
        self._peer: Peer | None = None
        self._is_writable = False

    @property
    def is_away(self) -> bool:
        """Return whether the client is not connected."""
        return self._peer is None

    def is_full_for(self, _source: str) -> bool:
        """Return whether a publisher should wait for this client: never for one that is away."""
        return self.outbox.is_full and not self.is_away

    def attach(self, peer: Peer) -> None:
        """Connect the client: messages that it did not acknowledge go out again."""
        self._peer, self._is_writable = peer, True
        self.away_since_s = None
        self.outbox.restart()
        self.pump()

    def detach(self, now_s: float) -> None:
        """Note that the client is gone."""
        self._peer = None
        self.away_since_s = now_s

    def offer(self, message: QueuedMessage) -> bool:
        """Send a message, or queue it; return False if it had to be dropped."""
        is_taken = self.outbox.offer(message, is_away=self.is_away)
        self.pump()
        return is_taken

    def on_writable(self, is_writable: bool) -> None:
        """Note that the socket's own buffer has filled, or drained."""
        self._is_writable = is_writable
        self.pump()

    def acknowledge(self, packet_id: int) -> None:
        """Take an acknowledgement. One of an unknown id is ignored: it may be from before a reconnect."""
        self.outbox.acknowledge(packet_id)
        self.pump()

    def pump(self) -> None:
        """Write as many queued packets as may be written."""
        while self._peer is not None and self._is_writable and (packet := self.outbox.take()):
            self._peer.send(publish_header(packet, len(packet.payload)), packet.payload)
