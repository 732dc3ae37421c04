"""Messages in pieces: what a device and the host of a general model say may have megabytes, a broker carries less.

A piece is a number of its message, how many pieces that has and which this is (four and twice two bytes, the least
significant first), and its bytes. One side's pieces are sent one message after another. A message of which a piece is
missing when the next begins is dropped: whoever waits for an answer says it again.
"""

# coverage: every branch

from dataclasses import dataclass, field

from edge_runtime.wire.errors import MessageInvalid

FRAGMENT_HEADER_BYTES = 8
FRAGMENT_BYTES = 256 * 1024 - FRAGMENT_HEADER_BYTES
MAX_FRAGMENTS = 2**16 - 1
MESSAGE_NUMBERS = 2**32
"""Numbers of messages begin again after so many."""
MAX_MESSAGE_BYTES = 512 * 1024**2
"""No message is longer, whatever its layout."""


def to_fragments(number: int, data: bytes, piece_bytes: int = FRAGMENT_BYTES) -> list[bytes]:
    """The pieces of a message. Raises MessageInvalid for one that is too long."""
    count = _pieces(len(data), piece_bytes)
    if count > MAX_FRAGMENTS:
        raise MessageInvalid(f"a message of {len(data)} bytes is too long to be sent")
    head = (number % MESSAGE_NUMBERS).to_bytes(4, "little") + count.to_bytes(2, "little")
    view = memoryview(data)
    return [
        head + index.to_bytes(2, "little") + view[index * piece_bytes : (index + 1) * piece_bytes]
        for index in range(count)
    ]


def fragmented_bytes(length_bytes: int, piece_bytes: int = FRAGMENT_BYTES) -> int:
    """How many bytes the pieces of a message of this length have together."""
    return length_bytes + FRAGMENT_HEADER_BYTES * _pieces(length_bytes, piece_bytes)


def _pieces(length_bytes: int, piece_bytes: int) -> int:
    return max(1, -(-length_bytes // piece_bytes))


@dataclass
class _Partial:
    number: int
    count: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    size_bytes: int = 0


class Assembler:
    """The messages of one sender. `max_bytes` is the longest that it may send."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._partial: _Partial | None = None

    def accept(self, piece: bytes) -> bytes | None:
        """Take a piece that came; the message, if it is whole now. Raises MessageInvalid, and drops the message."""
        head = bytes(piece[:FRAGMENT_HEADER_BYTES])
        number, count, index = (int.from_bytes(head[a:b], "little") for a, b in ((0, 4), (4, 6), (6, 8)))
        if len(head) < FRAGMENT_HEADER_BYTES or index >= count:
            raise MessageInvalid(f"{len(piece)} bytes are no piece of a message")
        partial = self._partial
        if partial is None or (partial.number, partial.count) != (number, count):
            partial = self._partial = _Partial(number, count)
        if index not in partial.pieces:
            partial.size_bytes += len(piece) - FRAGMENT_HEADER_BYTES
            if partial.size_bytes > self._max_bytes:
                self._partial = None
                raise MessageInvalid(f"a message of more than {self._max_bytes} bytes")
            partial.pieces[index] = piece
        if len(partial.pieces) < count:
            return None
        self._partial = None
        return b"".join(memoryview(partial.pieces[index])[FRAGMENT_HEADER_BYTES:] for index in range(count))
