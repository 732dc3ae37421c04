"""The queues of what waits until the link has room: messages to devices, the encoder server's fragments, and chunks.

Rules
- Messages go first, then the encoder server's fragments, then chunks, which are read from the disk when they go.
- All queues are bounded. Of too many messages the oldest are dropped, of too many chunks the newest; devices ask for
  them again. The encoder server is not read while too many of its fragments wait, so they wait in its process.
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
MAX_FRAGMENTS = 1024


class Outgoing:
    """Takes what is to be sent, and hands it to the link as far as there is room."""

    def __init__(self, link: Link, topics: Topics, blobs: BlobStore) -> None:
        self._link = link
        self._topics = topics
        self._blobs = blobs
        self._messages: deque[tuple[str, bytes]] = deque(maxlen=MAX_MESSAGES)
        self._fragments: deque[tuple[str, bytes]] = deque()
        self._chunks: deque[Chunk] = deque()
        self.counts: Counter[str] = Counter()
        """Numbers of what was dropped, by reason."""

    @property
    def is_empty(self) -> bool:
        """Return whether everything has been handed to the link."""
        return not self._messages and not self._fragments and not self._chunks

    @property
    def takes_fragments(self) -> bool:
        """Return whether the encoder server's next fragments may come."""
        return len(self._fragments) <= MAX_FRAGMENTS

    def message(self, device: str, payload: bytes) -> None:
        """Queue a message to a device."""
        self._messages.append((self._topics.command(device), payload))

    def fragment(self, device: str, payload: bytes) -> None:
        """Queue a fragment of a message from the encoder server to a device."""
        self._fragments.append((self._topics.down(device), payload))

    def chunks(self, wanted: Sequence[Chunk]) -> None:
        """Queue chunks that devices want."""
        room = max(0, MAX_CHUNKS - len(self._chunks))
        self._chunks.extend(wanted[:room])
        self.counts["chunk that the link had no room for"] += len(wanted[room:])

    def drop_chunks(self) -> None:
        """Drop all chunks, because the connection is lost: devices that still need some ask again."""
        self._chunks.clear()

    def flush(self) -> None:
        """Hand to the link what it has room for."""
        try:
            for waiting in (self._messages, self._fragments):
                while waiting:
                    self._link.publish(*waiting[0])
                    waiting.popleft()
            while self._chunks:
                self._send(self._chunks[0])
                self._chunks.popleft()
        except LinkFull:
            return

    def _send(self, chunk: Chunk) -> None:
        """Publish a chunk, if its blob is still here. Raises LinkFull."""
        try:
            data = self._blobs.chunk(chunk.blob, chunk.index)
        except BlobInvalid:
            self.counts["need of a blob that is no longer kept"] += 1
        except OSError:
            self.counts["chunk that could not be read"] += 1
        else:
            self._link.publish(self._topics.download(chunk.blob.digest, chunk.index), data)
