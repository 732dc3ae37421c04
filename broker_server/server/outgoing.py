"""What waits until the link has room for it: messages to devices, what the host of a general model says, and chunks.

Rules
- Messages go first, then the host's pieces, then chunks, each of which is read when it goes.
- All of it is bounded. What is lost here is asked for again: the oldest message goes where there are too many, and the
  newest chunks; the host is not read while too many of its pieces wait, so they wait in its process.
"""

# coverage: every branch

from collections import Counter, deque
from collections.abc import Sequence

from broker_server.server.transfers import Chunk
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.link import Link, LinkFull
from edge_runtime.wire.topics import Topics

MAX_MESSAGES = 4096
MAX_CHUNKS = 1024
"""Each a few bytes until it is read."""
MAX_PIECES = 1024


class Outgoing:
    """Takes what is to be said, and hands it to the link as far as there is room."""

    def __init__(self, link: Link, topics: Topics, blobs: BlobStore) -> None:
        self._link = link
        self._topics = topics
        self._blobs = blobs
        self._messages: deque[tuple[str, bytes]] = deque(maxlen=MAX_MESSAGES)
        self._pieces: deque[tuple[str, bytes]] = deque()
        self._chunks: deque[Chunk] = deque()
        self.counts: Counter[str] = Counter()
        """What was dropped, by reason."""

    @property
    def is_empty(self) -> bool:
        """Whether everything has been handed to the link."""
        return not self._messages and not self._pieces and not self._chunks

    @property
    def takes_pieces(self) -> bool:
        """Whether the host may say more."""
        return len(self._pieces) <= MAX_PIECES

    def message(self, device: str, payload: bytes) -> None:
        """A message to a device."""
        self._messages.append((self._topics.command(device), payload))

    def piece(self, device: str, payload: bytes) -> None:
        """What the host of the general model says to a device."""
        self._pieces.append((self._topics.down(device), payload))

    def chunks(self, wanted: Sequence[Chunk]) -> None:
        """Chunks that devices want."""
        room = max(0, MAX_CHUNKS - len(self._chunks))
        self._chunks.extend(wanted[:room])
        self.counts["chunk that the link had no room for"] += len(wanted[room:])

    def lost(self) -> None:
        """The connection is lost: whoever still needs chunks asks again."""
        self._chunks.clear()

    def flush(self) -> None:
        """Hand to the link what it has room for."""
        try:
            for waiting in (self._messages, self._pieces):
                while waiting:
                    self._link.publish(*waiting[0])
                    waiting.popleft()
            while self._chunks:
                self._send(self._chunks[0])
                self._chunks.popleft()
        except LinkFull:
            return

    def _send(self, chunk: Chunk) -> None:
        """Raises LinkFull."""
        try:
            data = self._blobs.chunk(chunk.blob, chunk.index)
        except BlobInvalid:
            self.counts["need of a blob that is no longer kept"] += 1
        else:
            self._link.publish(self._topics.download(chunk.blob.digest, chunk.index), data)
