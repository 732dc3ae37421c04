"""Blobs on their way: those that devices ask the server for, and those that it fetches from them. No link, no clock.

Rules
- Only blobs that the server offers are served, each device's requests in their order, to that device alone: what
  another one asks for takes no room on its line. Each device has its turn, one message at a time, and may have
  MAX_WAITING requests that wait.
- What a device sends goes to its own folder (device_uploads.py), which holds one blob: the one it announced last. Only
  what it announced, and was asked for, is taken.
- Nothing is asked for twice unless it is proved lost (edge_runtime.wire.fetch). A device that announces or connects
  again is probed.
- All devices together are asked for MAX_HELD_BYTES at the most, what waits to be written (run_writer.py) with it; those
  that announce more have their turn as others' arrives, in the order of their announcements.
"""

# coverage: every branch

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.server.run_writer import ImmediateWriter, RunWriter, Write
from edge_runtime.wire.blob import CHUNK_BYTES, Assembly, Blob, ChunkRun
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.fetch import Fetch
from edge_runtime.wire.messages import LossProbe, Need
from edge_runtime.wire.pace import Pace

MAX_WAITING = 256
"""Requests of one device that wait; an honest one has no more under way than its window, in a few runs."""
MAX_HELD_BYTES = 64 << 20
"""What all devices together are asked for and have not sent yet, or have sent and the disk has not taken yet."""
UNSTORED_S = 10.0
"""After so long, what this machine could not store is asked for again."""
FIRST_PROBES = 1_000_000
"""Probes of two processes hardly meet: the number of the first is drawn from so many thousands."""
FIRST_BYTES_PER_S = 50_000.0
"""What is taken for the speed of a device's uplink before it was measured: too much does no harm, because the device
sends no faster than its line."""


@dataclass(frozen=True)
class Piece:
    """A run of a blob for a device, or a marker where there is none."""

    device: str
    digest: str
    index: int
    blob: Blob | None = None
    run: ChunkRun | None = None


class ServedBlobs:
    """The blobs that the server offers, and what devices have asked for of them and not been sent yet."""

    def __init__(self) -> None:
        self.most_bytes = 1 << 20
        """The longest run in one message."""
        self._offered: dict[str, Blob] = {}
        self._waiting: dict[str, deque[Need | LossProbe]] = {}  # the device whose turn it is comes first
        self.counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def offer(self, *blobs: Blob) -> None:
        """Serve these blobs from now on."""
        self._offered.update({blob.digest: blob for blob in blobs})

    def withdraw(self, digest: str) -> None:
        """Serve a blob no longer; what waits of it is passed over."""
        self._offered.pop(digest, None)

    def on_request(self, device: str, request: Need | LossProbe) -> None:
        """Take a device's request: it waits for the device's turn."""
        waiting = self._waiting.setdefault(device, deque())
        if len(waiting) < MAX_WAITING:
            waiting.append(request)
        else:
            self.counts["need beyond what a device may have waiting"] += 1

    def next(self) -> Piece | None:
        """Return what to send next, without taking it from what waits; None if nothing waits."""
        while self._waiting:
            device, waiting = next(iter(self._waiting.items()))
            request = waiting[0]
            if isinstance(request, LossProbe):
                return Piece(device, request.digest, request.number)
            blob = self._offered.get(request.digest)
            run = request.runs[0]
            if blob is not None and run.end <= blob.chunks:
                now = ChunkRun(run.first, min(run.count, max(1, self.most_bytes // blob.chunk_bytes)))
                return Piece(device, request.digest, run.first, blob, now)
            self.counts["need of an unknown blob" if blob is None else "need of an unknown chunk"] += 1
            self._strike(device, run.count)
        return None

    def sent(self, piece: Piece) -> None:
        """Strike what `next` returned: it was sent, or cannot be."""
        self._strike(piece.device, 0 if piece.run is None else piece.run.count)

    def _strike(self, device: str, count: int) -> None:
        """Strike so many chunks of a device's first request; then it is the turn of the next device."""
        waiting = self._waiting.pop(device)
        request = waiting.popleft()
        if isinstance(request, Need):
            run, *others = request.runs
            left = [ChunkRun(run.first + count, run.count - count)] if run.count > count else []
            if runs := (*left, *others):
                waiting.appendleft(Need(digest=request.digest, runs=runs))
        if waiting:
            self._waiting[device] = waiting


@dataclass
class Upload:
    """A blob on its way from a device."""

    assembly: Assembly
    fetch: Fetch
    writing_bytes: int = 0
    """What has come and is not on the disk yet."""
    unstored: list[ChunkRun] = field(default_factory=list)
    """What has come and could not be stored."""
    again_s: float = 0.0
    """When that is asked for again."""

    @property
    def held_bytes(self) -> int:
        """What of it takes room on the line or in memory."""
        return self.fetch.asked_bytes + self.writing_bytes


class Uploads:
    """Every blob on its way from a device: at most one for each. Give each process another `first_probe`.

    `rates` are the devices' lines as an earlier process has measured them, in bytes a second.
    """

    def __init__(
        self,
        folders: DeviceUploads,
        *,
        writer: RunWriter | None = None,
        first_probe: int = 0,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self._folders = folders
        self._writer = writer or ImmediateWriter()
        self._uploads: dict[str, Upload] = {}  # in the order of announcements
        self._paces = {device: Pace(rate) for device, rate in (rates or {}).items()}
        self._first_probe = first_probe
        self.counts: Counter[str] = Counter()

    def __contains__(self, device: str) -> bool:
        return device in self._uploads

    def rates(self) -> dict[str, float]:
        """Return what a later process needs: the rate of each device's line, to two digits."""
        found = {device: pace.bytes_per_s for device, pace in self._paces.items()}
        return {device: float(f"{rate:.1e}") for device, rate in sorted(found.items()) if rate}

    def begin(self, device: str, blob: Blob, now_s: float) -> tuple[bool, list[Need | LossProbe]]:
        """Fetch a blob that a device announced; return whether it is here already, and what to ask for.

        Goes on with the same blob where it is on its way, and else replaces what the device sent before. Raises OSError
        as the file system does.
        """
        upload = self._uploads.get(device)
        if upload is None or upload.assembly.blob != blob:
            store = self._folders.of(device)
            for digest in set(store.digests()) - {blob.digest}:
                store.discard(digest)
            self._folders.expected[device] = blob.digest
            self._first_probe += 1
            pace = self._paces.setdefault(device, Pace(FIRST_BYTES_PER_S))
            assembly = Assembly(store, blob)
            upload = self._uploads[device] = Upload(
                assembly, Fetch(pace, first_probe=1000 * (self._first_probe % FIRST_PROBES))
            )
            upload.fetch.want(blob, assembly.missing())
        else:
            upload.fetch.doubt()
        if upload.assembly.is_complete:
            self.abandon(device)
            return True, []
        return False, self._requests(upload, now_s)

    def on_connected(self, device: str) -> None:
        """Note that a device has connected, or the server: what it was asked for before may have been lost."""
        if device in self._uploads:
            self._uploads[device].fetch.doubt()

    def abandon(self, device: str) -> None:
        """Fetch nothing more from a device; what has come stays on the disk."""
        self._uploads.pop(device, None)
        self._folders.expected.pop(device, None)

    def on_run(self, device: str, digest: str, index: int, data: bytes, now_s: float) -> list[Need | LossProbe]:
        """Take a run or a marker; return what to ask for next. `written` says what came of the run.

        One that was not asked for or has a wrong length is counted and dropped.
        """
        upload = self._uploads.get(device)
        if upload is None or upload.assembly.blob.digest != digest:
            self.counts["chunk not asked for"] += 1
            return []
        if not data:
            upload.fetch.on_marker(index, now_s)
            return self._requests(upload, now_s)
        blob = upload.assembly.blob
        try:
            run = blob.run_at(index, len(data))
        except BlobInvalid:
            self.counts["chunk of a wrong index or length"] += 1
            return []
        upload.fetch.on_run(digest, run, now_s)
        upload.writing_bytes += len(data)
        self._writer.put(Write(device, upload.assembly, run, data))
        return self._requests(upload, now_s)

    def written(self, now_s: float) -> list[Write]:
        """Return the runs with which a blob is complete, and those with a fault: BlobInvalid or OSError.

        A blob that was complete and had another digest has ended; what the file system did not take is asked for again.
        """
        news = []
        for write in self._writer.done():
            upload = self._uploads.get(write.device)
            if upload is None or upload.assembly is not write.assembly:
                continue  # it was abandoned meanwhile
            upload.writing_bytes -= len(write.data)
            if isinstance(write.fault, OSError):
                upload.unstored.append(write.run)
                upload.again_s = now_s + UNSTORED_S
            elif write.fault or write.is_complete:
                self.abandon(write.device)
            else:
                continue
            news.append(write)
        return news

    def tick(self, now_s: float) -> list[tuple[str, Need | LossProbe]]:
        """Return what to ask devices for now: it is their turn, or nothing has come from them for long."""
        for upload in self._uploads.values():
            if upload.unstored and now_s >= upload.again_s:
                upload.fetch.want(upload.assembly.blob, upload.unstored)
                upload.unstored.clear()
        found, held_bytes = [], self._held_bytes
        for device, upload in self._uploads.items():
            others_bytes = held_bytes - upload.held_bytes
            found += [(device, request) for request in _requests(upload, now_s, others_bytes)]
            held_bytes = others_bytes + upload.held_bytes
        return found

    @property
    def _held_bytes(self) -> int:
        """What all devices together are asked for, or have sent and the disk has not taken yet."""
        return sum(upload.held_bytes for upload in self._uploads.values())

    def _requests(self, upload: Upload, now_s: float) -> list[Need | LossProbe]:
        return _requests(upload, now_s, self._held_bytes - upload.held_bytes)


def _requests(upload: Upload, now_s: float, others_bytes: int) -> list[Need | LossProbe]:
    """Return what to ask a device for where so much is held of others."""
    room = MAX_HELD_BYTES - others_bytes - upload.writing_bytes
    return upload.fetch.requests(now_s, room if room >= CHUNK_BYTES else 0)
