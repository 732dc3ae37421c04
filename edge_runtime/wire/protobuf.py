"""The fields of a protobuf message, read without its schema and without copies: a board has no onnx package.

Rules
- A length counts only if that many bytes are there; nothing is allocated for a number in a file.
- Content that protobuf's own readers would skip or mend is refused: groups, field numbers outside 1 to 2²⁹ − 1, and
  numbers of more than 64 bits. So what is checked here is what another reader sees.

(Protocol Buffers, Encoding: https://protobuf.dev/programming-guides/encoding/)
"""

# coverage: every branch

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}
_MAX_FIELD = 2**29 - 1
_MAX_VARINT_BYTES = 10

Field = tuple[int, int, int | memoryview]
"""A field's number, its wire type and its value: an int for VARINT, else the bytes of the content."""


class ProtobufInvalid(ValueError):
    """The bytes are not a protobuf message; the text says at which of them."""


def fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of a message, in order. Raises ProtobufInvalid at the first that cannot be read."""
    place, end = 0, len(data)
    while place < end:
        key, after = varint(data, place)
        number, wire = key >> 3, key & 7
        if not 1 <= number <= _MAX_FIELD:
            raise ProtobufInvalid(f"field number {number} at byte {place} is not one")
        if wire == VARINT:
            value, place = varint(data, after)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, after = varint(data, after)
        elif wire in _WIDTHS:
            length = _WIDTHS[wire]
        else:
            raise ProtobufInvalid(f"wire type {wire} at byte {place} is not one that is used")
        if length > end - after:
            raise ProtobufInvalid(f"field {number} at byte {place} has {length} bytes, and {end - after} are left")
        place = after + length
        yield number, wire, data[after:place]


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number of at most 64 bits at `place`, and the place after it. Raises ProtobufInvalid."""
    value = shift = 0
    for at in range(place, min(len(data), place + _MAX_VARINT_BYTES)):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, at + 1
        shift += 7
    raise ProtobufInvalid(f"the number at byte {place} does not end, or has more than 64 bits")
