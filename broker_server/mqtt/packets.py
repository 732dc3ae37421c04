"""The packets of MQTT 3.1.1 that this broker speaks (section 3), as values."""

# coverage: every branch

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the broker publishes when a client vanishes."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """The first packet of a client. The password is kept out of repr."""

    client_id: str
    clean_session: bool = True
    keepalive_s: int = 0
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None

    def __repr__(self) -> str:
        return f"Connect(client_id={self.client_id!r}, username={self.username!r})"


@dataclass(frozen=True, slots=True)
class Connack:
    """The answer to CONNECT; code 0 accepts."""

    session_present: bool
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A message. `packet_id` is 0 at QoS 0, and only there."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0


@dataclass(frozen=True, slots=True)
class Puback:
    """The acknowledgement of a QoS 1 message."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pubrec:
    """The broker has a QoS 2 message, and knows its id until PUBREL."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pubrel:
    """The client knows that the broker has its QoS 2 message, and will not send it again."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pubcomp:
    """The end of a QoS 2 message's way: its id is free again."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Filters with the QoS asked for each."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Suback:
    """For each filter the QoS granted, or 0x80 for a refusal."""

    packet_id: int
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Filters to drop."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsuback:
    """The acknowledgement of an UNSUBSCRIBE."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pingreq:
    """A client's question whether the broker is there."""


@dataclass(frozen=True, slots=True)
class Pingresp:
    """The answer to a PINGREQ."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A client's polite end: its will is not sent."""


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
)
"""Every packet."""
