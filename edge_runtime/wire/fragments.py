"""Split-learning messages in fragments: a message may have megabytes, and a broker carries less.

A fragment is the number of its message (four bytes), the count of fragments and its index (two bytes each), all with
the least significant byte first, and then a part of the message. A sender sends the fragments of one message after
those of another. A message that lacks a fragment when the next one begins is dropped, and its sender sends it again
when no reply comes.
"""

# coverage: every branch

from dataclasses import dataclass, field

from edge_runtime.wire.errors import MessageInvalid

FRAGMENT_HEADER_BYTES = 8
FRAGMENT_BYTES = 256 * 1024 - FRAGMENT_HEADER_BYTES
MAX_FRAGMENTS = 2**16 - 1
MESSAGE_NUMBERS = 2**32
"""The count of message numbers; after the last they begin again at 0."""


def to_fragments(number: int, data: bytes, fragment_bytes: int = FRAGMENT_BYTES) -> list[bytes]:
    """Cut a message into fragments. Raises MessageInvalid for one that is too long."""
    count = _fragment_count(len(data), fragment_bytes)
    if count > MAX_FRAGMENTS:
        raise MessageInvalid(f"a message of {len(data)} bytes is too long for {MAX_FRAGMENTS} fragments")
    head = (number % MESSAGE_NUMBERS).to_bytes(4, "little") + count.to_bytes(2, "little")
    view = memoryview(data)
    return [
        head + index.to_bytes(2, "little") + view[index * fragment_bytes : (index + 1) * fragment_bytes]
        for index in range(count)
    ]


def fragmented_bytes(length_bytes: int, fragment_bytes: int = FRAGMENT_BYTES) -> int:
    """Return the bytes of all fragments of a message of this length."""
    return length_bytes + FRAGMENT_HEADER_BYTES * _fragment_count(length_bytes, fragment_bytes)


def _fragment_count(length_bytes: int, fragment_bytes: int) -> int:
    return max(1, -(-length_bytes // fragment_bytes))


@dataclass
class _Partial:
    number: int
    count: int
    fragments: dict[int, bytes] = field(default_factory=dict)
    size_bytes: int = 0


class Assembler:
    """Puts the messages of one sender together. `max_bytes` is the longest that it may send."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._partial: _Partial | None = None

    def accept(self, fragment: bytes) -> bytes | None:
        """Take a fragment; return the message if it is complete now. Raises MessageInvalid, and drops the message."""
        head = bytes(fragment[:FRAGMENT_HEADER_BYTES])
        number, count, index = (int.from_bytes(head[a:b], "little") for a, b in ((0, 4), (4, 6), (6, 8)))
        if len(head) < FRAGMENT_HEADER_BYTES or index >= count:
            raise MessageInvalid(f"{len(fragment)} bytes are no fragment of a message")
        partial = self._partial
        if partial is None or (partial.number, partial.count) != (number, count):
            partial = self._partial = _Partial(number, count)
        if index not in partial.fragments:
            partial.size_bytes += len(fragment) - FRAGMENT_HEADER_BYTES
            if partial.size_bytes > self._max_bytes:
                self._partial = None
                raise MessageInvalid(f"a message has more than {self._max_bytes} bytes, the most of this round")
            partial.fragments[index] = fragment
        if len(partial.fragments) < count:
            return None
        self._partial = None
        return b"".join(memoryview(partial.fragments[index])[FRAGMENT_HEADER_BYTES:] for index in range(count))
