"""Large content in chunks: described by a digest, asked for by index, whole only when the digest agrees.

Rules
- A blob's description comes in a validated message; its size is capped before anything is allocated.
- A chunk is accepted at its index alone, with exactly the length that its index implies.
- Which chunks have arrived is kept beside the data, so a transfer goes on after a restart of either side.
- An assembled blob whose digest disagrees is thrown away whole: no chunk of it can be trusted.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.files import digest_file, sync_folder, write_whole
from edge_runtime.wire.names import Digest

CHUNK_BYTES = 256 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
MAX_BLOB_BYTES = 2 * 1024**3
WINDOW = 8
"""Chunks asked for at once: enough to fill a link, few enough that a ping is never far behind (aim: line rate)."""


class Blob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a large piece of content is: SHA-256 in hexadecimal, bytes in all, bytes in a chunk."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]
    chunk_bytes: Annotated[int, Meta(ge=1024, le=MAX_CHUNK_BYTES)] = CHUNK_BYTES

    @property
    def chunks(self) -> int:
        """How many chunks the blob has."""
        return -(-self.size_bytes // self.chunk_bytes)

    def length(self, index: int) -> int:
        """How many bytes chunk `index` has."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)


def describe(data: bytes | memoryview, *, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """The description of content that is in memory."""
    return Blob(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data), chunk_bytes=chunk_bytes)


def describe_file(path: Path, *, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """The description of a file's content. Raises OSError if it cannot be read."""
    return Blob(digest=digest_file(path), size_bytes=path.stat().st_size, chunk_bytes=chunk_bytes)


class BlobStore:
    """Whole blobs in a folder, named by their digest, and the partial ones beside them.

    `root/<digest>` is whole and verified. `root/<digest>.part` holds what has come so far and
    `root/<digest>.have` one byte for each chunk, 1 where it has.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the whole blob is, or will be. `digest` is hexadecimal by its type, never a path."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BlobInvalid(f"{digest[:80]!r} is not a SHA-256 digest")
        return self.root / digest

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def read(self, digest: str) -> bytes:
        """A whole blob's content. Raises BlobInvalid if it is not here."""
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError as exc:
            raise BlobInvalid(f"blob {digest[:12]} is not in {self.root}") from exc

    def add(self, data: bytes | memoryview, *, chunk_bytes: int = CHUNK_BYTES) -> Blob:
        """Keep `data` and return its description."""
        blob = describe(data, chunk_bytes=chunk_bytes)
        if blob.digest not in self:
            write_whole(self.path(blob.digest), data)
        return blob

    def chunk(self, blob: Blob, index: int) -> bytes:
        """Chunk `index` of a whole blob. Raises BlobInvalid if the blob or the chunk does not exist."""
        if not 0 <= index < blob.chunks:
            raise BlobInvalid(f"blob {blob.digest[:12]} has {blob.chunks} chunks, so there is no chunk {index}")
        try:
            with self.path(blob.digest).open("rb") as file:
                file.seek(index * blob.chunk_bytes)
                return file.read(blob.length(index))
        except FileNotFoundError as exc:
            raise BlobInvalid(f"blob {blob.digest[:12]} is not in {self.root}") from exc

    def discard(self, digest: str) -> None:
        """Forget a blob, whole or partial."""
        for path in self._files(digest):
            path.unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """The digests of all blobs here, whole or partial, in order."""
        yield from sorted({path.name.split(".")[0] for path in self.root.iterdir() if not path.name.startswith(".")})

    def _files(self, digest: str) -> tuple[Path, Path, Path]:
        whole = self.path(digest)
        return whole, whole.with_suffix(".part"), whole.with_suffix(".have")


class Assembly:
    """One blob on its way in, chunk by chunk, on disk; it goes on where an earlier process stopped."""

    def __init__(self, store: BlobStore, blob: Blob) -> None:
        self.blob = blob
        self._whole, self._part, self._have_path = store._files(blob.digest)
        self._folder = store.root
        self._have = bytearray(blob.chunks)
        if blob.digest in store:
            self._have = bytearray(b"\x01" * blob.chunks)
        elif self._part.is_file() and self._have_path.is_file() and self._part.stat().st_size == blob.size_bytes:
            have = self._have_path.read_bytes()
            if len(have) == blob.chunks and set(have) <= {0, 1}:
                self._have = bytearray(have)

    @property
    def whole(self) -> bool:
        """Whether the blob is complete and verified in the store."""
        return self._whole.is_file()

    def missing(self, limit: int | None = None) -> tuple[int, ...]:
        """The indices that have not come yet, lowest first, at most `limit` of them."""
        indices = [i for i, here in enumerate(self._have) if not here]
        return tuple(indices if limit is None else indices[:limit])

    def accept(self, index: int, data: bytes | memoryview) -> bool:
        """Take one chunk; True when it made the blob whole. A chunk that is here already is ignored.

        Raises BlobInvalid for an index or a length that cannot be, and, after throwing everything away,
        for a complete blob with a wrong digest.
        """
        if not 0 <= index < self.blob.chunks:
            raise BlobInvalid(
                f"blob {self.blob.digest[:12]} has {self.blob.chunks} chunks, so there is no chunk {index}"
            )
        if len(data) != self.blob.length(index):
            raise BlobInvalid(
                f"chunk {index} of blob {self.blob.digest[:12]} has {len(data)} bytes instead of "
                f"{self.blob.length(index)}"
            )
        if self._have[index]:
            return False
        if not self._part.is_file() or self._part.stat().st_size != self.blob.size_bytes:
            with self._part.open("wb") as file:
                file.truncate(self.blob.size_bytes)
        with self._part.open("r+b") as file:
            file.seek(index * self.blob.chunk_bytes)
            file.write(data)
        self._have[index] = 1
        self._have_path.write_bytes(self._have)
        return all(self._have) and self._finish()

    def _finish(self) -> bool:
        if digest_file(self._part) != self.blob.digest:
            self._part.unlink()
            self._have_path.unlink()
            self._have = bytearray(self.blob.chunks)
            raise BlobInvalid(f"blob {self.blob.digest[:12]} came complete but its SHA-256 is another; it was dropped")
        self._part.replace(self._whole)
        self._have_path.unlink()
        sync_folder(self._folder)
        return True
