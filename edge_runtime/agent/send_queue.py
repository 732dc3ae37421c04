"""The queue of a device's outgoing messages and runs of chunks, which wait by reference while the link has no room.

Rules
- Control messages go first, then the fragments of split learning, then runs of the update in the order in which they
  were asked for, with the markers between them (edge_runtime.wire.fetch).
- Runs are handed to the link as fast as the broker acknowledges them, so that on a slow line only a few seconds of them
  are ever before the next message; each is cut to what passes in a moment (edge_runtime.wire.pace).
- Nothing that was asked for is dropped because a connection is lost.
"""

from collections import deque
from collections.abc import Callable, Iterable

from edge_runtime.wire.blob import Blob, BlobStore, ChunkRun
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.link import Link, LinkFull
from edge_runtime.wire.messages import DeviceMessage, FinalEnergy, Progress, Refusal, Status, encode
from edge_runtime.wire.pace import Handover, Pace
from edge_runtime.wire.topics import Topics

MAX_RUNS = 1024
"""Runs and markers that wait; beyond that they are dropped, and the server finds out."""


class SendQueue:
    """A device's outgoing messages, fragments, and runs of the update in `weights`. `uplink` is the line's pace."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        device: str,
        weights: BlobStore,
        on_unreadable: Callable[[str], None],
        *,
        uplink: Pace,
        clock: Callable[[], float],
    ) -> None:
        """`on_unreadable` is called with a sentence for a run that cannot be read and is dropped."""
        self._link = link
        self._topics = topics
        self._device = device
        self._weights = weights
        self._on_unreadable = on_unreadable
        self._handover = Handover(link, uplink)
        self._clock = clock
        self._messages: deque[DeviceMessage | Status] = deque()
        self._fragments: deque[bytes] = deque()
        self._runs: deque[tuple[Blob, ChunkRun] | tuple[str, int]] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not (self._messages or self._fragments or self._runs)

    def add_message(self, message: DeviceMessage | Status) -> None:
        """Queue a message; progress only where no other waits."""
        if not (isinstance(message, Progress) and self._messages):
            self._messages.append(message)

    def add_runs(self, blob: Blob, runs: tuple[ChunkRun, ...]) -> None:
        """Queue runs of the update, as far as there is room."""
        self._runs.extend((blob, run) for run in runs[: max(0, MAX_RUNS - len(self._runs))])

    def add_marker(self, digest: str, number: int) -> None:
        """Queue a marker behind the runs that wait."""
        if len(self._runs) < MAX_RUNS:
            self._runs.append((digest, number))

    def add_fragments(self, fragments: Iterable[bytes]) -> None:
        """Queue fragments of messages to the encoder server."""
        self._fragments.extend(fragments)

    def keep_only(self, *kinds: type[Refusal] | type[FinalEnergy]) -> None:
        """Drop the messages that are not of these kinds, which are sent once, and the fragments."""
        self._messages = deque(message for message in self._messages if isinstance(message, kinds))
        self._fragments.clear()

    def drop_runs(self) -> None:
        """Drop the runs that wait: the update is no longer wanted."""
        self._runs.clear()

    def flush(self) -> None:
        """Publish as far as the link and the line have room."""
        self._handover.measure(self._clock(), waits=bool(self._runs))
        try:
            while self._messages:
                self._publish(self._messages[0])
                self._messages.popleft()
            while self._fragments:
                self._link.publish(self._topics.up(self._device), self._fragments[0])
                self._fragments.popleft()
            while self._runs and self._handover.has_room:
                self._publish_run()
        except LinkFull:
            return

    def _publish(self, message: DeviceMessage | Status) -> None:
        if isinstance(message, Status):
            self._link.publish(self._topics.status(self._device), encode(message), retain=True)
        else:
            self._link.publish(self._topics.event(self._device), encode(message))

    def _publish_run(self) -> None:
        """Publish the first run that waits, or as much of it as goes in one message. Raises LinkFull."""
        blob, run = self._runs[0]
        if isinstance(blob, str):
            assert isinstance(run, int)
            self._link.publish(self._topics.upload(self._device, blob, run), b"")
            self._runs.popleft()
            return
        assert isinstance(run, ChunkRun)
        now = ChunkRun(run.first, min(run.count, max(1, self._handover.pace.message_bytes // blob.chunk_bytes)))
        try:
            data = self._weights.run(blob, now)
        except (BlobInvalid, OSError) as exc:
            self._on_unreadable(f"a part of the update cannot be read: {exc}")
        else:
            self._link.publish(self._topics.upload(self._device, blob.digest, run.first), data)
        self._runs.popleft()
        if run.count > now.count:
            self._runs.appendleft((blob, ChunkRun(now.end, run.count - now.count)))
