"""The broker's counters. Reasons are a few fixed words, never text of a client."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counters since the start, by reason. Written by the broker's thread; another one may read a snapshot."""

    bytes_in: int = 0  # from sockets, before decoding and after TLS
    bytes_out: int = 0
    messages_in: int = 0
    connections: int = 0  # accepted by the listener
    refused: Counter[str] = field(default_factory=Counter)  # CONNECT, PUBLISH and SUBSCRIBE that were not allowed
    dropped: Counter[str] = field(default_factory=Counter)  # messages that a subscriber did not get
    malformed: Counter[str] = field(default_factory=Counter)  # packets that broke the protocol
    closed: Counter[str] = field(default_factory=Counter)  # connections, by why they ended

    def snapshot(self) -> dict[str, int | dict[str, int]]:
        """Return all counters as plain values."""
        return {
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "messages_in": self.messages_in,
            "connections": self.connections,
            "refused": dict(self.refused),
            "dropped": dict(self.dropped),
            "malformed": dict(self.malformed),
            "closed": dict(self.closed),
        }
