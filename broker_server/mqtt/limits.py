"""The broker's limits: every bound on memory, time and numbers that a client could press against."""

from dataclasses import dataclass

from broker_server.mqtt.codec import MAX_PACKET_BYTES


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds. A client costs at the very worst twice queue_bytes and write_bytes, and four times packet_bytes."""

    packet_bytes: int = MAX_PACKET_BYTES
    clients: int = 1024
    pending: int = 64  # connections that have begun and not been authenticated; others wait for their turn
    pending_of_address: int = 32  # of these, from one address
    patience_s: float = 3.0  # how long one of these may be silent while others wait
    connect_timeout_s: float = 10.0  # and where nobody waits
    sessions: int = 4096  # with those of clients that are away
    session_expiry_s: float = 86_400.0  # how long a client may be away and find its session again
    subscriptions: int = 256  # of one client
    window: int = 20  # QoS 1 messages on their way to one client
    unreleased: int = 1000  # QoS 2 messages of one client that it has not released
    queue_bytes: int = 8 << 20  # for one client: from here on QoS 0 is dropped and QoS 1 publishers are held back
    write_bytes: int = 1 << 20  # in the socket's own buffer, before the queue
    stall_s: float = 30.0  # how long one slow client may hold back others
    retained: int = 10_000
    retained_bytes: int = 64 << 20
