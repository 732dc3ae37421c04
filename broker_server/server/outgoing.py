"""The queues of what waits until the link has room: messages to devices, the encoder server's fragments, and chunks.

Rules
- Messages go first, then the encoder server's fragments, then runs of chunks, read from the disk when they go.
- Chunks are handed to the link as fast as the broker acknowledges them, so that a few seconds of them at the most are
  before the next message (edge_runtime.wire.pace).
- All queues are bounded. Of too many messages the oldest are dropped. The encoder server is not read while too many of
  its fragments wait, so they wait in its process. What devices have asked for waits in transfers.py.
"""

# coverage: every branch

from collections import Counter, deque
from collections.abc import Callable

from broker_server.server.transfers import Piece, ServedBlobs
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.link import Link, LinkFull
from edge_runtime.wire.pace import Handover, Pace
from edge_runtime.wire.topics import Topics

MAX_MESSAGES = 4096
MAX_FRAGMENTS = 1024
UNDER_WAY_BYTES = 8 << 20
"""The most that is published and not acknowledged by the broker; more waits here."""


class Outgoing:
    """Takes what is to be sent, and hands it to the link as far as there is room."""

    def __init__(
        self, link: Link, topics: Topics, blobs: BlobStore, served: ServedBlobs, clock: Callable[[], float]
    ) -> None:
        self._link = link
        self._topics = topics
        self._blobs = blobs
        self._messages: deque[tuple[str, bytes]] = deque(maxlen=MAX_MESSAGES)
        self._fragments: deque[tuple[str, bytes]] = deque()
        self._served = served
        self._clock = clock
        self._handover = Handover(link, Pace(most_window_bytes=UNDER_WAY_BYTES))
        self.counts: Counter[str] = Counter()
        """Numbers of what was dropped, by reason."""

    @property
    def is_empty(self) -> bool:
        """Return whether everything has been handed to the link."""
        return not self._messages and not self._fragments and not self._served

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

    def flush(self) -> None:
        """Hand to the link what it has room for."""
        self._handover.measure(self._clock(), waits=bool(self._served))
        try:
            for waiting in (self._messages, self._fragments):
                while waiting:
                    self._link.publish(*waiting[0])
                    waiting.popleft()
            while self._handover.has_room and (piece := self._served.next()) is not None:
                self._send(piece)
                self._served.sent(piece)
        except LinkFull:
            return

    def _send(self, piece: Piece) -> None:
        """Publish a run of chunks, if its blob is still here, or a marker. Raises LinkFull."""
        data = b""
        if piece.blob is not None and piece.run is not None:
            try:
                data = self._blobs.run(piece.blob, piece.run)
            except BlobInvalid:
                self.counts["need of a blob that is no longer kept"] += 1
                return
            except OSError:
                self.counts["chunk that could not be read"] += 1
                return
        self._link.publish(self._topics.download(piece.device, piece.digest, piece.index), data)
