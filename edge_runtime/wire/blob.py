"""Large content in chunks: described by a digest, requested in runs, complete only when the digest agrees.

Rules
- A blob's description arrives in a validated message; its size is capped before anything is allocated.
- Chunks are small and travel in runs, as many in one message as the line and the broker bear: who asks names runs, and
  who sends may cut one in two.
- A run is accepted at its place alone, with exactly the length that its chunks have.
- The record of chunks that have arrived is kept beside the data, so a transfer goes on after a restart of either side.
  Neither is flushed chunk by chunk: after a power cut the record may claim a chunk whose data never reached the disk.
  The digest then disagrees and the blob is transferred again, which is cheaper than a flush for each of a thousand
  chunks.
- Complete content is flushed before it gets its name: a file named by a digest has that digest.
- An assembled blob whose digest disagrees is dropped in full: none of its chunks can be trusted.
"""

# coverage: every branch

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.files import digest_file, sync_file, sync_folder, write_atomic
from edge_runtime.wire.names import Digest

CHUNK_BYTES = 4096
MIN_CHUNK_BYTES = 1024
MAX_CHUNK_BYTES = 1024 * 1024
MAX_BLOB_BYTES = 2 * 1024**3
MAX_CHUNKS = MAX_BLOB_BYTES // MIN_CHUNK_BYTES
MESSAGE_BYTES = 256 * 1024
"""The longest run in one message, where no setting says otherwise."""


_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class ChunkRun(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Consecutive chunks: the index of the first, and how many."""

    first: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
    count: Annotated[int, Meta(ge=1, le=MAX_CHUNKS)]

    @property
    def end(self) -> int:
        """The index behind the last one."""
        return self.first + self.count


class Blob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description of large content: SHA-256 in hexadecimal, bytes in all, bytes in a chunk."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]
    chunk_bytes: Annotated[int, Meta(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)] = CHUNK_BYTES

    @property
    def chunks(self) -> int:
        """The number of chunks of the blob."""
        return -(-self.size_bytes // self.chunk_bytes)

    def length(self, index: int) -> int:
        """Return the bytes in chunk `index`. Raises BlobInvalid if there is no such chunk."""
        if not 0 <= index < self.chunks:
            raise BlobInvalid(f"blob {self.digest[:12]} has {self.chunks} chunks, so there is no chunk {index}")
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)

    def run_bytes(self, run: ChunkRun) -> int:
        """Return the bytes in a run. Raises BlobInvalid if the blob does not have all of its chunks."""
        return (run.count - 1) * self.chunk_bytes + self.length(run.end - 1)

    def run_at(self, first: int, length: int) -> ChunkRun:
        """Return the run of `length` bytes that begins with chunk `first`. Raises BlobInvalid if there is none."""
        self.length(first)
        run = ChunkRun(first, max(1, -(-length // self.chunk_bytes)))
        if run.end > self.chunks or self.run_bytes(run) != length:
            raise BlobInvalid(f"{length} bytes from chunk {first} on are no run of chunks of blob {self.digest[:12]}")
        return run


def describe(data: bytes | memoryview, *, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """Return the description of content in memory. Raises BlobInvalid if it is empty or too large to send."""
    digest, size_bytes = hashlib.sha256(data).hexdigest(), memoryview(data).nbytes
    try:
        return msgspec.convert({"digest": digest, "size_bytes": size_bytes, "chunk_bytes": chunk_bytes}, Blob)
    except msgspec.ValidationError as exc:
        raise BlobInvalid(f"{size_bytes} bytes in chunks of {chunk_bytes} cannot be sent: {exc}") from exc


class BlobStore:
    """Complete blobs in a folder, named by their digest, and partial ones beside them.

    `root/<digest>` is complete and verified. `root/<digest>.part` holds the chunks that have arrived so far, and
    `root/<digest>.have` one byte for each chunk, 1 where it has arrived.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return the path of the complete blob, whether it exists or not. Raises BlobInvalid unless `digest` is one."""
        if not _DIGEST.match(digest):
            raise BlobInvalid(f"{digest[:80]!r} is not a SHA-256 digest")
        return self.root / digest

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def read(self, digest: str) -> bytes:
        """Return a complete blob's content. Raises BlobInvalid if it is not here."""
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError as exc:
            raise BlobInvalid(f"blob {digest[:12]} is not in {self.root}") from exc

    def add(self, data: bytes | memoryview, *, chunk_bytes: int = CHUNK_BYTES) -> Blob:
        """Store `data` and return its description."""
        blob = describe(data, chunk_bytes=chunk_bytes)
        if blob.digest not in self:
            write_atomic(self.path(blob.digest), data)
        return blob

    def run(self, blob: Blob, run: ChunkRun) -> bytes:
        """Return a run of chunks of a complete blob. Raises BlobInvalid if the blob or one of them does not exist."""
        length = blob.run_bytes(run)
        try:
            with self.path(blob.digest).open("rb") as file:
                file.seek(run.first * blob.chunk_bytes)
                data = file.read(length)
        except FileNotFoundError as exc:
            raise BlobInvalid(f"blob {blob.digest[:12]} is not in {self.root}") from exc
        if len(data) != length:
            raise BlobInvalid(f"blob {blob.digest[:12]} does not have the {blob.size_bytes} bytes of its description")
        return data

    def discard(self, digest: str) -> None:
        """Delete a blob, complete or partial."""
        for path in self.files(digest):
            path.unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs here, complete or partial, in order."""
        names = {path.name.partition(".")[0] for path in self.root.iterdir()}
        yield from sorted(name for name in names if _DIGEST.match(name))

    def files(self, digest: str) -> tuple[Path, Path, Path]:
        """Return a blob's paths: the complete file, the partial one, and the record of chunks that have arrived."""
        complete = self.path(digest)
        return complete, complete.with_suffix(".part"), complete.with_suffix(".have")


class Assembly:
    """One blob on its way in, run by run, on disk; a restarted process goes on with it."""

    def __init__(self, store: BlobStore, blob: Blob) -> None:
        self.blob = blob
        self._complete, self._part, self._have_path = store.files(blob.digest)
        self._have = bytearray(blob.chunks)
        if self.is_complete:
            self._have = bytearray(b"\x01" * blob.chunks)
        elif self._resumable():
            have = self._have_path.read_bytes()
            if len(have) == blob.chunks and set(have) <= {0, 1}:
                self._have = bytearray(have)
                if 0 not in have:  # stopped before the digest was checked: one more chunk makes that happen
                    self._have[-1] = 0
        self._left = self._have.count(0)

    @property
    def is_complete(self) -> bool:
        """Whether the blob is complete and verified in the store."""
        return self._complete.is_file()

    def missing(self) -> tuple[ChunkRun, ...]:
        """Return the runs of chunks that have not arrived yet, in their order."""
        runs: list[ChunkRun] = []
        first = self._have.find(0)
        while first >= 0:
            end = self._have.find(1, first)
            end = len(self._have) if end < 0 else end
            runs.append(ChunkRun(first, end - first))
            first = self._have.find(0, end)
        return tuple(runs)

    def accept(self, first: int, data: bytes | memoryview) -> bool:
        """Store the run that begins with chunk `first`; True when it completes the blob. What is here is ignored.

        Raises BlobInvalid for an index or a length that is not the blob's, and for a complete blob with another digest,
        all of which is dropped. Raises OSError as the file system does.
        """
        run = self.blob.run_at(first, len(data))
        if 0 not in self._have[run.first : run.end]:
            return False
        if self.is_complete:  # another assembly of the same content was faster
            self._have, self._left = bytearray(b"\x01" * self.blob.chunks), 0
            return True
        if not self._resumable():
            self._begin()
        _write_at(self._part, first * self.blob.chunk_bytes, data)
        _write_at(self._have_path, first, b"\x01" * run.count)
        self._left -= self._have.count(0, run.first, run.end)
        self._have[run.first : run.end] = b"\x01" * run.count
        return self._left == 0 and self._finish()

    def _resumable(self) -> bool:
        return self._have_path.is_file() and self._part.is_file() and self._part.stat().st_size == self.blob.size_bytes

    def _begin(self) -> None:
        self._have, self._left = bytearray(self.blob.chunks), self.blob.chunks
        self._have_path.write_bytes(self._have)
        with self._part.open("wb") as file:
            file.truncate(self.blob.size_bytes)  # no space is taken until there is data

    def _finish(self) -> bool:
        if digest_file(self._part) != self.blob.digest:
            self._part.unlink()
            self._begin()
            raise BlobInvalid(f"blob {self.blob.digest[:12]} arrived complete but has another SHA-256; it was dropped")
        sync_file(self._part)
        self._part.replace(self._complete)
        self._have_path.unlink()
        sync_folder(self._complete.parent)
        return True


def _write_at(path: Path, offset: int, data: bytes | memoryview) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
