import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.codec import MAX_CONTROL_BYTES, Decoder, PacketMalformed, ProtocolUnsupported, encode
from broker_server.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
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

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
TOPICS = st.text(st.characters(codec="utf-8", exclude_characters="\0+#/"), min_size=1, max_size=20)
FILTERS = st.sampled_from(["a", "a/+", "#", "+/b/#", "é/ü"])
IDS = st.integers(1, 0xFFFF)
BLOBS = st.binary(max_size=300)
WILLS = st.builds(Will, TOPICS, BLOBS, st.integers(0, 2), st.booleans())


@st.composite
def publishes(draw):
    qos = draw(st.integers(0, 2))
    return Publish(
        topic=draw(TOPICS),
        payload=draw(BLOBS),
        qos=qos,
        retain=draw(st.booleans()),
        dup=bool(qos) and draw(st.booleans()),
        packet_id=draw(IDS) if qos else 0,
    )


@st.composite
def connects(draw):
    username = draw(st.none() | TEXTS)
    return Connect(
        client_id=draw(TEXTS),
        clean_session=draw(st.booleans()),
        keepalive_s=draw(st.integers(0, 0xFFFF)),
        will=draw(st.none() | WILLS),
        username=username,
        password=None if username is None else draw(st.none() | BLOBS),
    )


PACKETS = st.one_of(
    publishes(),
    connects(),
    st.builds(Connack, st.booleans(), st.integers(0, 255)),
    st.builds(Puback, IDS),
    st.builds(Pubrec, IDS),
    st.builds(Pubrel, IDS),
    st.builds(Pubcomp, IDS),
    st.builds(Subscribe, IDS, st.lists(st.tuples(FILTERS, st.integers(0, 2)), min_size=1).map(tuple)),
    st.builds(Suback, IDS, st.lists(st.sampled_from([0, 1, 2, 0x80]), min_size=1).map(tuple)),
    st.builds(Unsubscribe, IDS, st.lists(FILTERS, min_size=1).map(tuple)),
    st.builds(Unsuback, IDS),
    st.sampled_from([Pingreq(), Pingresp(), Disconnect()]),
)

ONE_OF_EACH = [
    Connect(
        client_id="c", clean_session=False, keepalive_s=9, will=Will("w", b"x", 1, True), username="u", password=b"p"
    ),
    Connack(True, 0),
    Publish(topic="a/b", payload=b"hello", qos=1, packet_id=7, dup=True, retain=True),
    Publish(topic="a/b", payload=b""),
    Puback(1),
    Pubrel(1),
    Subscribe(2, (("a/#", 1), ("b", 0))),
    Suback(2, (1, 0x80)),
    Unsubscribe(3, ("a/#", "b")),
    Unsuback(3),
    Pingreq(),
    Pingresp(),
    Disconnect(),
]


def decoded(data: bytes):
    decoder = Decoder()
    decoder.push(data)
    packet = decoder.pull()
    assert decoder.held_bytes == 0 or packet is None
    return packet


def refused(data: bytes) -> str:
    with pytest.raises(PacketMalformed) as caught:
        decoded(data)
    return caught.value.reason


def kind(packet) -> str:
    return type(packet).__name__


@pytest.mark.slow
@given(packets=st.lists(PACKETS, max_size=6), sizes=st.lists(st.integers(1, 50), min_size=1))
def test_decoder_gives_back_what_was_encoded_however_it_was_cut(packets, sizes):
    data = b"".join(map(encode, packets))
    decoder, found, at, turn = Decoder(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        decoder.push(data[at : at + size])
        at, turn = at + size, turn + 1
        while (packet := decoder.pull()) is not None:
            found.append(packet)
    assert found == packets
    assert decoder.held_bytes == 0
    assert decoder.pull() is None


@given(data=st.binary(max_size=400))
def test_decoder_given_random_bytes_decodes_refuses_or_waits(data):
    decoder = Decoder(max_packet_bytes=200)
    decoder.push(data)
    try:
        while (packet := decoder.pull()) is not None:
            assert decoded(encode(packet)) == packet
    except PacketMalformed as exc:
        assert exc.reason in {
            "type",
            "length",
            "oversize",
            "truncated",
            "packet-id",
            "text",
            "topic",
            "flags",
            "protocol",
        }
    assert decoder.held_bytes <= len(data)


@pytest.mark.parametrize("packet", ONE_OF_EACH, ids=kind)
def test_decoder_waits_on_every_truncated_prefix(packet):
    data = encode(packet)
    for size in range(len(data)):
        assert decoded(data[:size]) is None
    assert decoded(data) == packet


@pytest.mark.parametrize("packet", ONE_OF_EACH, ids=kind)
def test_decoder_never_takes_a_body_cut_short_for_the_packet(packet):
    data = encode(packet)
    assert data[1] == len(data) - 2
    for size in range(len(data) - 2):
        try:
            cut = decoded(bytes((data[0], size)) + data[2 : 2 + size])
        except PacketMalformed:
            continue
        assert cut != packet


@pytest.mark.parametrize("packet", [packet for packet in ONE_OF_EACH if not isinstance(packet, Publish)], ids=kind)
def test_decoder_refuses_bytes_left_over_and_flags(packet):
    data = encode(packet)
    if not isinstance(packet, (Subscribe, Suback, Unsubscribe)):  # there one more byte begins one more entry
        assert refused(bytes((data[0], data[1] + 1)) + data[2:] + b"\0") == "length"
    assert refused(bytes((data[0] ^ 1,)) + data[1:]) == "type"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00", "type"),
        (b"\xf0\x00", "type"),
        (b"\x51\x02\x00\x01", "type"),  # PUBREC with flags
        (b"\x60\x02\x00\x01", "type"),  # PUBREL without its flag
        (b"\x62\x02\x00\x00", "packet-id"),
        (b"\x30\xff\xff\xff\xff\x01", "length"),
        (b"\x36\x03\x00\x01a", "flags"),  # QoS 3
        (b"\x38\x03\x00\x01a", "flags"),  # DUP at QoS 0
        (b"\x30\x00", "truncated"),
        (b"\x30\x02\x00\x00", "topic"),
        (b"\x30\x03\x00\x01+", "topic"),
        (b"\x30\x03\x00\x01\0", "text"),
        (b"\x30\x03\x00\x01\xff", "text"),
        (b"\x30\x05\x00\x03\xed\xa0\x80", "text"),  # a surrogate
        (b"\x32\x05\x00\x01a\x00\x00", "packet-id"),
        (b"\x40\x02\x00\x00", "packet-id"),
        (b"\x20\x02\x02\x00", "flags"),
        (b"\x82\x02\x00\x01", "truncated"),
        (b"\x82\x06\x00\x01\x00\x01a\x03", "flags"),
        (b"\x82\x06\x00\x01\x00\x01\x00\x01", "text"),
        (b"\x82\x07\x00\x01\x00\x02a#\x01", "topic"),
        (b"\xa2\x02\x00\x01", "truncated"),
        (b"\x90\x02\x00\x01", "flags"),
        (b"\x90\x03\x00\x01\x03", "flags"),
        (b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x00\x00\x00", "protocol"),
        (b"\x10\x0c\x00\x04MQTT\x04\x03\x00\x00\x00\x00", "flags"),  # reserved
        (b"\x10\x0c\x00\x04MQTT\x04\x0a\x00\x00\x00\x00", "flags"),  # will QoS without a will
        (b"\x10\x0c\x00\x04MQTT\x04\x22\x00\x00\x00\x00", "flags"),  # will retain without a will
        (b"\x10\x0c\x00\x04MQTT\x04\x1e\x00\x00\x00\x00", "flags"),  # will QoS 3
        (b"\x10\x0c\x00\x04MQTT\x04\x42\x00\x00\x00\x00", "flags"),  # password without user name
    ],
)
def test_decoder_refuses_what_the_standard_forbids(data, reason):
    assert refused(data) == reason


@pytest.mark.parametrize(("name", "level"), [(b"MQTT", 5), (b"MQIsdp", 3)])
def test_decoder_names_another_version_of_the_protocol(name, level):
    body = len(name).to_bytes(2, "big") + name + bytes((level,)) + b"\x02\x00\x00\x00\x00"
    with pytest.raises(ProtocolUnsupported, match=f"level {level}"):
        decoded(bytes((0x10, len(body))) + body)


def test_decoder_refuses_an_announced_length_before_its_bytes_come():
    decoder = Decoder(max_packet_bytes=1000)
    decoder.push(b"\x30\xe8\x07")  # a body of 1000, so 1003 in all
    with pytest.raises(PacketMalformed, match="1003 bytes is over the 1000"):
        decoder.pull()


def test_decoder_holds_control_packets_to_their_own_cap():
    decoder = Decoder()
    decoder.push(b"\x82" + bytes((MAX_CONTROL_BYTES & 0x7F | 0x80, MAX_CONTROL_BYTES >> 7 & 0x7F | 0x80, 4)))
    with pytest.raises(PacketMalformed, match="oversize|over the"):
        decoder.pull()
    decoder = Decoder()
    decoder.push(encode(Publish(topic="a", payload=bytes(2 * MAX_CONTROL_BYTES))))
    assert isinstance(decoder.pull(), Publish)


def test_connect_keeps_its_password_out_of_repr():
    assert "geheim" not in repr(Connect(client_id="c", username="u", password=b"geheim"))
