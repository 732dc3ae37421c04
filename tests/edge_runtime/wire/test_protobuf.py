import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, ProtobufInvalid, fields, varint


def number(value):
    """A varint."""
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(place, wire, value):
    content = number(value) if wire == VARINT else (number(len(value)) if wire == BYTES else b"") + value
    return number(place << 3 | wire) + content


places = st.integers(1, 2**29 - 1)
FIELDS = st.one_of(
    st.tuples(places, st.just(VARINT), st.integers(0, 2**64 - 1)),
    st.tuples(places, st.just(BYTES), st.binary(max_size=300)),
    st.tuples(places, st.just(FIXED32), st.binary(min_size=4, max_size=4)),
    st.tuples(places, st.just(FIXED64), st.binary(min_size=8, max_size=8)),
)


def read(data):
    return [(n, wire, v if isinstance(v, int) else bytes(v)) for n, wire, v in fields(memoryview(data))]


@given(st.lists(FIELDS, max_size=6))
def test_fields_are_those_that_were_written(written):
    assert read(b"".join(field(*each) for each in written)) == written


@given(st.lists(FIELDS, min_size=1, max_size=3), st.data())
def test_fields_of_a_prefix_are_the_first_ones_or_invalid(written, data):
    content = b"".join(field(*each) for each in written)
    end = data.draw(st.integers(0, len(content) - 1))
    found = []
    try:
        found += fields(memoryview(content[:end]))
    except ProtobufInvalid:
        return
    assert len(found) < len(written)
    assert read(content[:end]) == written[: len(found)]


@given(st.binary(max_size=200))
def test_fields_of_random_bytes_are_fields_or_invalid(content):
    try:
        found = read(content)
    except ProtobufInvalid as exc:
        assert str(exc).isprintable()
    else:
        assert all(1 <= place < 2**29 for place, _, _ in found)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x00", "field number 0"),
        (number(2**29 << 3), "field number 536870912"),
        (number(2**63), "field number"),
        (b"\x0b", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
        (b"\x80", "byte 0 does not end"),
        (b"\x08\xff", "byte 1 does not end"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x08" + b"\x80" * 10 + b"\x00", "byte 1 does not end"),
        (b"\x0a\x05abc", "field 1 at byte 0 has 5 bytes, and 3 are left"),
        (b"\x0a" + number(2**64 - 1), "field 1 at byte 0 has 18446744073709551615 bytes, and 0 are left"),
        (b"\x0d\x00\x00\x00", "has 4 bytes, and 3 are left"),
        (b"\x09" + bytes(7), "has 8 bytes, and 7 are left"),
    ],
)
def test_fields_say_what_cannot_be_read_and_where(content, text):
    with pytest.raises(ProtobufInvalid, match=text):
        read(content)


def test_fields_before_one_that_cannot_be_read_are_given():
    found = fields(memoryview(b"\x08\x01\x0b"))
    assert next(found) == (1, VARINT, 1)
    with pytest.raises(ProtobufInvalid):
        next(found)


def test_varint_ends_where_its_last_byte_is():
    assert varint(memoryview(b"\xac\x02\x07"), 0) == (300, 2)
    assert varint(memoryview(b"\xac\x02\x07"), 2) == (7, 3)
    assert varint(memoryview(b"\xff" * 9 + b"\x01"), 0) == (2**64 - 1, 10)
