"""An image file, plain or compressed, which is read as a stream and checked before anything is written.

`survey` reads the whole image once: it finds a truncated or damaged file, computes the digests and the size, and copies
the boot and the root partition, so that a bad image is refused while the target is still untouched.
"""

import bz2
import gzip
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from devices.flashing.partitions import HEAD_BYTES, Layout, Partition, PartitionsInvalid, layout

BLOCK_BYTES = 1 << 20
MAX_IMAGE_BYTES = 1 << 40
"""The largest image: a file that unpacks to more is an attack or a mistake."""
_XZ, _GZIP, _ZIP, _BZIP2 = b"\xfd7zXZ\0", b"\x1f\x8b", b"PK\x03\x04", b"BZh"
_UNREAD = {b"\x28\xb5\x2f\xfd": "unzstd", b"\x04\x22\x4d\x18": "unlz4", b"7z\xbc\xaf": "7z x", b"Rar!": "unrar x"}
"""The first bytes of packed files that are not read here, and the program that unpacks each."""
_SECTOR_BYTES = 512

Progress = Callable[[int], None]
"""Called with the number of bytes since the call before."""


class ImageInvalid(Exception):
    """The image cannot be used; the sentence names the file and the fault."""


class ScratchFull(Exception):
    """There is no room for copies of the image's partitions; the sentence names the folder."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"copies of the image's partitions cannot be written to {folder} ({error.strerror}), and the target is "
            "unchanged: name a folder with room in TMPDIR"
        )


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts of an image that was read.

    Its partition `boot` is copied to `boot_copy`, and the one that holds its system, if there is one, to `root_copy`.
    `sha256` is of the image unpacked, `file_sha256` of the file as it is.
    """

    path: Path
    size_bytes: int
    sha256: str
    file_sha256: str
    boot: Partition
    boot_copy: Path
    root_copy: Path | None


class _PartitionCopy:
    """A partition out of the blocks of its disk, in a file that has holes where the partition has zeros alone."""

    def __init__(self, partition: Partition, path: Path) -> None:
        self._partition = partition
        self._file = path.open("wb")
        self._file.truncate(partition.size_bytes)

    def take(self, at: int, block: bytes) -> None:
        """Copy what the block, which lies at the byte `at` of the disk, has of the partition."""
        begin, end = max(self._partition.start_bytes, at), min(self._partition.end_bytes, at + len(block))
        inside = block[begin - at : end - at] if begin < end else b""
        if inside.strip(b"\0"):
            self._file.seek(begin - self._partition.start_bytes)
            self._file.write(inside)

    def close(self) -> None:
        """Write what is left. Raises OSError."""
        self._file.close()


def survey(path: Path, boot_copy: Path, *, sha256: str | None = None, progress: Progress | None = None) -> Survey:
    """Read the whole image; `sha256` is what its maker states, of the file or of the image unpacked.

    Raises ImageInvalid, and ScratchFull where `boot_copy` cannot be written.
    """
    try:
        return _survey(path, boot_copy, sha256, progress)
    except OSError as exc:  # errors of the image's own file are ImageInvalid
        raise ScratchFull(boot_copy.parent, exc) from exc


def _survey(path: Path, boot_copy: Path, sha256: str | None, progress: Progress | None) -> Survey:
    on_bytes = progress or (lambda _count: None)
    root_copy = boot_copy.with_suffix(".root")
    file_sha256 = _digest(path)
    image = hashlib.sha256()
    head = b""
    size_bytes = 0
    found: Layout | None = None
    with ExitStack() as open_copies:
        copies: list[_PartitionCopy] = []
        for block in blocks(path):
            image.update(block)
            if found is None:
                head += block
                if len(head) >= HEAD_BYTES:
                    found = _layout(path, head[:HEAD_BYTES])
                    parts = [(found.boot, boot_copy), *([(found.root, root_copy)] if found.root else [])]
                    copies = [open_copies.enter_context(closing(_PartitionCopy(*each))) for each in parts]
            for copy in copies:
                copy.take(size_bytes, block)
            size_bytes += len(block)
            if size_bytes > MAX_IMAGE_BYTES:
                raise ImageInvalid(f"{path} unpacks to more than {MAX_IMAGE_BYTES >> 30} GiB: it is no board's image")
            on_bytes(len(block))
    if found is None:
        raise ImageInvalid(f"{path} holds {size_bytes} bytes: it is no image of a disk")
    made = Survey(
        path=path,
        size_bytes=size_bytes,
        sha256=image.hexdigest(),
        file_sha256=file_sha256,
        boot=found.boot,
        boot_copy=boot_copy,
        root_copy=None if found.root is None else root_copy,
    )
    _check(made, found.end_bytes, sha256)
    return made


def _check(made: Survey, end_bytes: int, sha256: str | None) -> None:
    """Raise ImageInvalid where the partitions end after the image, or another SHA-256 is stated."""
    if end_bytes > made.size_bytes:
        raise ImageInvalid(
            f"{made.path} holds {made.size_bytes} bytes and its partitions reach to {end_bytes}: it is truncated, "
            "download it again"
        )
    if sha256 is not None and sha256.lower() not in {made.file_sha256, made.sha256}:
        raise ImageInvalid(
            f"{made.path} has SHA-256 {made.file_sha256} ({made.sha256} unpacked), not {sha256.lower()}: download it "
            "again"
        )


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the image's bytes, unpacked, a block at a time. Raises ImageInvalid where they end early or are damaged."""
    try:
        with _open(path) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except EOFError as exc:
        raise ImageInvalid(
            f"{path} ends before its compressed content does: it is truncated, download it again"
        ) from exc
    except (lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as exc:
        raise ImageInvalid(f"{path} is damaged or truncated ({exc}): download it again") from exc
    except OSError as exc:
        if exc.errno is None:  # bz2's own
            raise ImageInvalid(f"{path} is damaged or truncated ({exc}): download it again") from exc
        raise ImageInvalid(f"{path} cannot be read: {exc.strerror}") from exc


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open the unpacked image, by the first bytes of the file and not by its name."""
    with path.open("rb") as file:
        start = file.read(len(_XZ))
    for packed, program in _UNREAD.items():
        if start.startswith(packed):
            raise ImageInvalid(
                f"{path} is packed in a way that is not read here: unpack it first, with `{program} {path.name}`"
            )
    if start == _XZ:
        with lzma.open(path) as xz:
            yield xz
    elif start.startswith(_GZIP):
        with gzip.open(path) as zipped:
            yield cast("IO[bytes]", zipped)
    elif start.startswith(_BZIP2):
        with bz2.open(path) as bzipped:
            yield cast("IO[bytes]", bzipped)
    elif start.startswith(_ZIP):
        with zipfile.ZipFile(path) as archive, archive.open(_member(path, archive)) as member:
            yield member
    else:
        with path.open("rb") as plain:
            yield plain


def _member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [info for info in archive.infolist() if info.filename.lower().endswith((".img", ".raw", ".wic"))]
    if len(members) != 1:
        raise ImageInvalid(f"{path} holds {len(members)} images (*.img): unpack it and name the one to use")
    if members[0].flag_bits & 1:
        raise ImageInvalid(f"{path} is locked with a password: unpack it first")
    return members[0]


def _layout(path: Path, head: bytes) -> Layout:
    try:
        return layout(head)
    except PartitionsInvalid as exc:
        raise ImageInvalid(f"{path} cannot be set up: {exc}") from exc


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                state.update(block)
    except OSError as exc:
        raise ImageInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    return state.hexdigest()
