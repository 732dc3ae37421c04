"""The queue of a device's outgoing messages and chunks, which wait by reference while the link has no room."""

from collections import deque
from collections.abc import Callable, Iterable

from edge_runtime.wire.blob import Blob, BlobStore
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.link import Link, LinkFull
from edge_runtime.wire.messages import DeviceMessage, FinalEnergy, Progress, Refusal, Status, encode
from edge_runtime.wire.topics import Topics

MAX_WAITING = 256
"""Chunks and messages that wait for the link; beyond that chunks are dropped, and the server requests them again."""


class SendQueue:
    """A device's outgoing messages, chunks of the update in `weights`, and fragments, in their order."""

    def __init__(
        self, link: Link, topics: Topics, device: str, weights: BlobStore, on_unreadable: Callable[[str], None]
    ) -> None:
        """`on_unreadable` is called with a sentence for a chunk that cannot be read and is dropped."""
        self._link = link
        self._topics = topics
        self._device = device
        self._weights = weights
        self._on_unreadable = on_unreadable
        self._waiting: deque[DeviceMessage | Status | tuple[Blob, int] | bytes] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def add_message(self, message: DeviceMessage | Status) -> None:
        """Queue a message; progress only where nothing waits."""
        if not (isinstance(message, Progress) and self._waiting):
            self._waiting.append(message)

    def add_chunks(self, blob: Blob, indices: tuple[int, ...]) -> None:
        """Queue chunks of the update, as far as there is room."""
        room = max(0, MAX_WAITING - len(self._waiting))
        self._waiting.extend((blob, index) for index in indices[:room])

    def add_fragments(self, fragments: Iterable[bytes]) -> None:
        """Queue fragments of messages to the encoder server."""
        self._waiting.extend(fragments)

    def keep_only(self, *kinds: type[Refusal] | type[FinalEnergy]) -> None:
        """Drop everything but messages of these kinds, which are sent once."""
        self._waiting = deque(item for item in self._waiting if isinstance(item, kinds))

    def flush(self) -> None:
        """Publish in order as far as the link has room."""
        while self._waiting:
            try:
                self._publish(self._waiting[0])
            except LinkFull:
                return
            except (BlobInvalid, OSError) as exc:
                self._on_unreadable(f"a chunk of the update cannot be read: {exc}")
            self._waiting.popleft()

    def _publish(self, item: DeviceMessage | Status | tuple[Blob, int] | bytes) -> None:
        if isinstance(item, bytes):
            self._link.publish(self._topics.up(self._device), item)
        elif isinstance(item, tuple):
            blob, index = item
            self._link.publish(self._topics.upload(self._device, blob.digest, index), self._weights.chunk(blob, index))
        elif isinstance(item, Status):
            self._link.publish(self._topics.status(self._device), encode(item), retain=True)
        else:
            self._link.publish(self._topics.event(self._device), encode(item))
