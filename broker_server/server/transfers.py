"""Blobs on their way: those that devices ask the server for, and those that it fetches from them. No link, no clock.

Rules
- A chunk that was published a moment ago reaches everyone who had subscribed: another Need for it is answered by that
  one. A device subscribes right before it first asks for a blob, so what was published earlier has passed it by: all
  that came too late get it together at the next tick.
- Only blobs that the server offers are served, and only what a device announced, and was asked for, is taken.
- What a device sends goes to its own folder (device_uploads.py), which holds one blob: the one it announced last.
- An upload keeps WINDOW chunks in flight. When nothing has come for a while, what is missing is asked for again,
  with pauses that follow the link and grow, so that a slow uplink is not filled with repetitions.
- A device announces again what takes long to fetch: the upload goes on, and nothing on its way is asked for twice.
"""

# coverage: every branch

from collections import Counter
from dataclasses import dataclass, field

from broker_server.rounds.device_uploads import DeviceUploads
from edge_runtime.wire.blob import WINDOW, Assembly, Blob
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.messages import Need

FRESH_S = 0.5
"""A chunk published so recently is not published again."""
RETRY_S = 10.0
"""An upload's chunks are asked for again after this, or four times the usual gap between them …"""
MAX_RETRY_S = 120.0
"""… and twice as long each time; never longer than this."""


@dataclass(frozen=True)
class Chunk:
    """One chunk to be published."""

    blob: Blob
    index: int


class ServedBlobs:
    """The blobs that the server offers, and the chunks of them that it has just published."""

    def __init__(self) -> None:
        self._offered: dict[str, Blob] = {}
        self._published: dict[tuple[str, int], float] = {}  # oldest first
        self._asking_since_s: dict[tuple[str, str], float] = {}
        self._missed: dict[Chunk, None] = {}
        self.counts: Counter[str] = Counter()

    def offer(self, *blobs: Blob) -> None:
        """Serve these blobs from now on."""
        self._offered.update({blob.digest: blob for blob in blobs})

    def withdraw(self, digest: str) -> None:
        """Serve a blob no longer."""
        self._offered.pop(digest, None)
        self._asking_since_s = {key: since_s for key, since_s in self._asking_since_s.items() if key[1] != digest}
        self._missed = {chunk: None for chunk in self._missed if chunk.blob.digest != digest}

    def on_connected(self, device: str) -> None:
        """Note that a device has connected: what was published before has not reached it."""
        self._asking_since_s = {key: since_s for key, since_s in self._asking_since_s.items() if key[0] != device}

    def need(self, device: str, need: Need, now_s: float) -> list[Chunk]:
        """Return the chunks to publish now for a Need; none that are not offered, do not exist or are on their way."""
        blob = self._offered.get(need.digest)
        if blob is None:
            self.counts["need of an unknown blob"] += 1
            return []
        for key, at_s in list(self._published.items()):
            if now_s - at_s < FRESH_S:
                break
            del self._published[key]
        since_s = self._asking_since_s.setdefault((device, blob.digest), now_s)
        chunks = []
        for index in dict.fromkeys(need.chunks):
            if index >= blob.chunks:
                self.counts["need of an unknown chunk"] += 1
            elif self._published.get((blob.digest, index), now_s) < since_s:
                self._missed[Chunk(blob, index)] = None
            elif (blob.digest, index) in self._published:
                self.counts["need answered by another's chunk"] += 1
            else:
                self._published[blob.digest, index] = now_s
                chunks.append(Chunk(blob, index))
        return chunks

    def tick(self, now_s: float) -> list[Chunk]:
        """Return the chunks to publish again, for devices that subscribed too late for them."""
        chunks, self._missed = list(self._missed), {}
        for chunk in chunks:
            self._published.pop((chunk.blob.digest, chunk.index), None)
            self._published[chunk.blob.digest, chunk.index] = now_s
        return chunks


@dataclass
class Upload:
    """A blob on its way from a device."""

    assembly: Assembly
    in_flight: set[int] = field(default_factory=set)
    quiet_since_s: float = 0.0
    gap_s: float = 0.0
    """The usual time between two chunks; 0 before the first."""
    patience: float = 1.0

    @property
    def retry_s(self) -> float:
        """The time to wait for a chunk before asking again."""
        return min(MAX_RETRY_S, max(RETRY_S, 4 * self.gap_s) * self.patience)

    def on_chunk(self, now_s: float) -> None:
        """Note that a chunk has come."""
        gap_s = now_s - self.quiet_since_s
        self.gap_s = gap_s if self.gap_s == 0 else 0.8 * self.gap_s + 0.2 * gap_s
        self.quiet_since_s, self.patience = now_s, 1.0


class Uploads:
    """Every blob on its way from a device: at most one for each."""

    def __init__(self, folders: DeviceUploads) -> None:
        self._folders = folders
        self._uploads: dict[str, Upload] = {}
        self.counts: Counter[str] = Counter()

    def __contains__(self, device: str) -> bool:
        return device in self._uploads

    def begin(self, device: str, blob: Blob, now_s: float) -> tuple[bool, Need | None]:
        """Fetch a blob that a device announced; return whether it is here already, and the Need to send.

        Goes on with the same blob where it is on its way, and else replaces what the device sent before. Raises OSError
        as the file system does.
        """
        upload = self._uploads.get(device)
        if upload is None or upload.assembly.blob != blob:
            store = self._folders.of(device)
            for digest in set(store.digests()) - {blob.digest}:
                store.discard(digest)
            upload = self._uploads[device] = Upload(Assembly(store, blob))
        if upload.assembly.is_complete:
            self.abandon(device)
            return True, None
        return False, self._ask(upload, now_s)

    def on_connected(self, device: str) -> None:
        """Note that a device has connected: nothing that it was asked for before is on its way."""
        if device in self._uploads:
            self._uploads[device].in_flight.clear()

    def abandon(self, device: str) -> None:
        """Fetch nothing more from a device; what has come stays on the disk."""
        self._uploads.pop(device, None)

    def chunk(self, device: str, digest: str, index: int, data: bytes, now_s: float) -> tuple[bool, Need | None]:
        """Take a chunk; return whether the blob is complete with it, and the Need to send next.

        Raises BlobInvalid when the complete blob has another digest; the upload has then ended. A chunk that was not
        asked for or has a wrong length is counted and dropped. Raises OSError where the file system takes no chunk: it
        is then asked for again, as one that was lost.
        """
        upload = self._uploads.get(device)
        if upload is None or upload.assembly.blob.digest != digest:
            self.counts["chunk not asked for"] += 1
            return False, None
        blob = upload.assembly.blob
        if index >= blob.chunks or len(data) != blob.length(index):
            self.counts["chunk of a wrong index or length"] += 1
            return False, None
        upload.in_flight.discard(index)
        upload.on_chunk(now_s)
        try:
            is_complete = upload.assembly.accept(index, data)
        except BlobInvalid:
            self.abandon(device)
            raise
        if is_complete or upload.assembly.is_complete:
            self.abandon(device)
            return True, None
        return False, self._ask(upload, now_s)

    def tick(self, now_s: float) -> list[tuple[str, Need]]:
        """Return the Needs to send again, with their devices."""
        needs = []
        for device, upload in self._uploads.items():
            if now_s - upload.quiet_since_s >= upload.retry_s:
                upload.in_flight.clear()
                upload.patience *= 2
                needs.append((device, self._need(upload, now_s)))
        return needs

    def _ask(self, upload: Upload, now_s: float) -> Need | None:
        """Fill the window if half of it is free and anything is missing that is not in flight."""
        if len(upload.in_flight) > WINDOW // 2:
            return None
        missing = upload.assembly.missing(2 * WINDOW)
        return self._need(upload, now_s) if set(missing) - upload.in_flight else None

    @staticmethod
    def _need(upload: Upload, now_s: float) -> Need:
        missing = [index for index in upload.assembly.missing(2 * WINDOW) if index not in upload.in_flight]
        wanted = tuple(missing[: WINDOW - len(upload.in_flight)])
        upload.in_flight.update(wanted)
        upload.quiet_since_s = now_s
        return Need(digest=upload.assembly.blob.digest, chunks=wanted)
