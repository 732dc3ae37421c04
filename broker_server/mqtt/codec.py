"""MQTT 3.1.1 packets to bytes and back, without I/O.

Rules
- A length is checked against its cap before anything of that length is kept: `max_packet_bytes` for PUBLISH,
  MAX_CONTROL_BYTES for all others. A decoder never holds more than was pushed into it.
- What is not exactly a packet is PacketMalformed, whose `reason` is one of a few fixed words, fit for counting.
- QoS 2 is spoken on the way to the broker alone: a SUBSCRIBE that asks for it is granted less, so clients have no use
  for PUBREC and PUBCOMP.
"""

# coverage: every branch

import struct
from collections.abc import Callable
from typing import NoReturn

from broker_server.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker_server.mqtt.topics import is_filter, is_topic

MAX_PACKET_BYTES = (1 << 20) + (4 << 10)
MAX_CONTROL_BYTES = 64 << 10
PROTOCOL_LEVEL = 4


class PacketMalformed(ValueError):
    """Bytes that are not an MQTT 3.1.1 packet, or one over its cap. `reason` is a fixed word."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class ProtocolUnsupported(PacketMalformed):
    """A CONNECT of another version of MQTT."""


# Fixed headers, byte 1 (section 2.2). PUBLISH has its flags in the low half; all others have exactly these.
_PUBLISH = 0x30
_CONNECT, _CONNACK, _PUBACK, _PUBREC, _PUBREL, _PUBCOMP = 0x10, 0x20, 0x40, 0x50, 0x62, 0x70
_SUBSCRIBE, _SUBACK, _UNSUBSCRIBE, _UNSUBACK = 0x82, 0x90, 0xA2, 0xB0
_PINGREQ, _PINGRESP, _DISCONNECT = 0xC0, 0xD0, 0xE0
_SUBACK_CODES = frozenset({0, 1, 2, 0x80})


def encode(packet: Packet) -> bytes:
    """Return the bytes of a packet. The caller vouches for its fields."""
    if isinstance(packet, Publish):
        return publish_header(packet, len(packet.payload)) + packet.payload
    first, body = _encode_control(packet)
    return bytes((first,)) + _varint(len(body)) + body


def publish_header(packet: Publish, payload_bytes: int) -> bytes:
    """Return all of a PUBLISH but its payload, so that a payload sent to many is never copied."""
    first = _PUBLISH | packet.dup << 3 | packet.qos << 1 | packet.retain
    head = _text(packet.topic) + (_id(packet.packet_id) if packet.qos else b"")
    return bytes((first,)) + _varint(len(head) + payload_bytes) + head


class Decoder:
    """Bytes in, packets out: `push` what arrived, then `pull` until it gives None.

    Pulling is the caller's choice, so that a publisher can be held back with packets still undecoded.
    After PacketMalformed the decoder is of no further use.
    """

    def __init__(self, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        self.max_packet_bytes = max_packet_bytes
        self._buffer = bytearray()

    @property
    def held_bytes(self) -> int:
        """Return how many bytes were pushed and not pulled yet."""
        return len(self._buffer)

    def push(self, data: bytes) -> None:
        """Take in bytes as they arrived."""
        self._buffer += data

    def pull(self) -> Packet | None:
        """Return the next packet, or None if it is not complete. Raises PacketMalformed."""
        frame = self._frame()
        if frame is None:
            return None
        start, end = frame
        first = self._buffer[0]
        with memoryview(self._buffer) as view:
            packet = _decode_body(first, _Reader(bytes(view[start:end])))
        del self._buffer[:end]
        return packet

    def _frame(self) -> tuple[int, int] | None:
        """Return the start and end of the first packet's body, once it is complete."""
        buffer = self._buffer
        if not buffer:
            return None
        if buffer[0] & 0xF0 != _PUBLISH and buffer[0] not in _DECODERS:
            raise PacketMalformed("type", f"first byte 0x{buffer[0]:02x} begins no packet of MQTT 3.1.1")
        length = 0
        for at in range(1, 5):
            if at >= len(buffer):
                return None
            length |= (buffer[at] & 0x7F) << 7 * (at - 1)
            if buffer[at] < 0x80:
                break
        else:
            raise PacketMalformed("length", "the remaining length has more than four bytes")
        cap = self.max_packet_bytes
        if buffer[0] & 0xF0 != _PUBLISH:
            cap = min(cap, MAX_CONTROL_BYTES)
        end = at + 1 + length
        if end > cap:
            raise PacketMalformed("oversize", f"a packet of {end} bytes is over the {cap} allowed")
        return (at + 1, end) if end <= len(buffer) else None


class _Reader:
    """Reads the body of one packet, front to back."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._body)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._body):
            raise PacketMalformed("truncated", "a field reaches beyond the end of its packet")
        part = self._body[self._at : end]
        self._at = end
        return part

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def packet_id(self) -> int:
        return self.number() or _refuse("packet-id", "a packet id is 0")

    def blob(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            text = self.blob().decode()
        except UnicodeDecodeError as exc:
            raise PacketMalformed("text", "a text is not UTF-8") from exc
        return _refuse("text", "a text holds U+0000") if "\0" in text else text

    def topic(self) -> str:
        text = self.text()
        return text if is_topic(text) else _refuse("topic", f"{text[:80]!r} is not a topic to publish to")

    def topic_filter(self) -> str:
        text = self.text()
        return text if is_filter(text) else _refuse("topic", f"{text[:80]!r} is not a topic filter")


def _decode_body(first: int, body: _Reader) -> Packet:
    if first & 0xF0 == _PUBLISH:
        return _decode_publish(first, body)
    packet = _DECODERS[first](body)
    return packet if body.is_done else _refuse("length", "a packet has bytes left over")


def _decode_publish(first: int, body: _Reader) -> Publish:
    qos, dup = first >> 1 & 3, bool(first & 8)
    if qos == 3 or (dup and not qos):
        _refuse("flags", "a PUBLISH has QoS 3, or DUP at QoS 0")
    topic = body.topic()
    packet_id = body.packet_id() if qos else 0
    return Publish(topic=topic, payload=body.rest(), qos=qos, retain=bool(first & 1), dup=dup, packet_id=packet_id)


def _decode_subscribe(body: _Reader) -> Subscribe:
    packet_id = body.packet_id()
    pairs: list[tuple[str, int]] = []
    while not body.is_done:
        topic_filter, qos = body.topic_filter(), body.byte()
        if qos > 2:
            _refuse("flags", "a SUBSCRIBE asks for a QoS that is none")
        pairs.append((topic_filter, qos))
    return Subscribe(packet_id, tuple(pairs) or _refuse("truncated", "a SUBSCRIBE names no filter"))


def _decode_connect(body: _Reader) -> Connect:
    name, level = body.blob(), body.byte()
    if (name, level) != (b"MQTT", PROTOCOL_LEVEL):
        if name in {b"MQTT", b"MQIsdp"}:
            raise ProtocolUnsupported("protocol", f"protocol level {level}: this broker speaks MQTT 3.1.1, level 4")
        _refuse("protocol", "a CONNECT does not name MQTT")
    flags = body.byte()
    has_will, will_qos, will_retain = bool(flags & 4), flags >> 3 & 3, bool(flags & 0x20)
    has_username, has_password = bool(flags & 0x80), bool(flags & 0x40)
    if (
        flags & 1
        or will_qos == 3
        or (not has_will and (will_qos or will_retain))
        or (has_password and not has_username)
    ):
        _refuse("flags", "the flags of a CONNECT contradict one another or use a reserved bit")
    keepalive_s = body.number()
    client_id = body.text()
    will = Will(body.topic(), body.blob(), will_qos, will_retain) if has_will else None
    return Connect(
        client_id=client_id,
        clean_session=bool(flags & 2),
        keepalive_s=keepalive_s,
        will=will,
        username=body.text() if has_username else None,
        password=body.blob() if has_password else None,
    )


def _decode_connack(body: _Reader) -> Connack:
    flags, code = body.byte(), body.byte()
    return Connack(bool(flags), code) if flags <= 1 else _refuse("flags", "a CONNACK has reserved flags")


def _decode_suback(body: _Reader) -> Suback:
    packet_id, codes = body.packet_id(), tuple(body.rest())
    if not codes or not _SUBACK_CODES.issuperset(codes):
        _refuse("flags", "a SUBACK has no code, or one that is none")
    return Suback(packet_id, codes)


def _decode_unsubscribe(body: _Reader) -> Unsubscribe:
    packet_id = body.packet_id()
    filters: list[str] = []
    while not body.is_done:
        filters.append(body.topic_filter())
    return Unsubscribe(packet_id, tuple(filters) or _refuse("truncated", "an UNSUBSCRIBE names no filter"))


_DECODERS: dict[int, Callable[[_Reader], Packet]] = {
    _CONNECT: _decode_connect,
    _CONNACK: _decode_connack,
    _PUBACK: lambda body: Puback(body.packet_id()),
    _PUBREC: lambda body: Pubrec(body.packet_id()),
    _PUBREL: lambda body: Pubrel(body.packet_id()),
    _PUBCOMP: lambda body: Pubcomp(body.packet_id()),
    _SUBSCRIBE: _decode_subscribe,
    _SUBACK: _decode_suback,
    _UNSUBSCRIBE: _decode_unsubscribe,
    _UNSUBACK: lambda body: Unsuback(body.packet_id()),
    _PINGREQ: lambda _body: Pingreq(),
    _PINGRESP: lambda _body: Pingresp(),
    _DISCONNECT: lambda _body: Disconnect(),
}


def _encode_control(packet: Packet) -> tuple[int, bytes]:  # noqa: C901, PLR0911, PLR0912 - one line for each kind of packet
    match packet:
        case Connect():
            return _CONNECT, _connect_body(packet)
        case Connack(session_present, code):
            return _CONNACK, bytes((session_present, code))
        case Puback(packet_id):
            return _PUBACK, _id(packet_id)
        case Pubrec(packet_id):
            return _PUBREC, _id(packet_id)
        case Pubrel(packet_id):
            return _PUBREL, _id(packet_id)
        case Pubcomp(packet_id):
            return _PUBCOMP, _id(packet_id)
        case Subscribe(packet_id, pairs):
            return _SUBSCRIBE, _id(packet_id) + b"".join(_text(name) + bytes((qos,)) for name, qos in pairs)
        case Suback(packet_id, codes):
            return _SUBACK, _id(packet_id) + bytes(codes)
        case Unsubscribe(packet_id, filters):
            return _UNSUBSCRIBE, _id(packet_id) + b"".join(map(_text, filters))
        case Unsuback(packet_id):
            return _UNSUBACK, _id(packet_id)
        case Pingreq():
            return _PINGREQ, b""
        case Pingresp():
            return _PINGRESP, b""
        case Disconnect():
            return _DISCONNECT, b""
    raise AssertionError(packet)


def _connect_body(packet: Connect) -> bytes:
    flags = packet.clean_session << 1 | (packet.username is not None) << 7 | (packet.password is not None) << 6
    parts = [_text(packet.client_id)]
    if packet.will is not None:
        flags |= 4 | packet.will.qos << 3 | packet.will.retain << 5
        parts += [_text(packet.will.topic), _blob(packet.will.payload)]
    if packet.username is not None:
        parts.append(_text(packet.username))
    if packet.password is not None:
        parts.append(_blob(packet.password))
    return _blob(b"MQTT") + struct.pack(">BBH", PROTOCOL_LEVEL, flags, packet.keepalive_s) + b"".join(parts)


def _id(packet_id: int) -> bytes:
    return packet_id.to_bytes(2, "big")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _blob(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _text(text: str) -> bytes:
    return _blob(text.encode())


def _refuse(reason: str, sentence: str) -> NoReturn:
    raise PacketMalformed(reason, sentence)
