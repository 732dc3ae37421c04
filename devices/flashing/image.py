"""An image file, plain or compressed, which is read as a stream and checked before anything is written.

`survey` reads the whole image once: it finds a truncated or damaged file, computes the digests and the size, and copies
the FAT boot partition, so that a bad image is refused while the target is still untouched.
"""

import gzip
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from devices.flashing.partitions import HEAD_BYTES, Partition, PartitionsInvalid, boot_partition

BLOCK_BYTES = 1 << 20
MAX_IMAGE_BYTES = 1 << 40
"""The largest image: a file that unpacks to more is an attack or a mistake."""
_XZ, _GZIP, _ZIP = b"\xfd7zXZ\0", b"\x1f\x8b", b"PK\x03\x04"
_SECTOR_BYTES = 512

Progress = Callable[[int], None]
"""Called with the number of bytes since the call before."""


class ImageInvalid(Exception):
    """The image cannot be used; the sentence names the file and the fault."""


class ScratchFull(Exception):
    """There is no room for a copy of the boot partition, which is set up as a file; the sentence names the folder."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"a copy of the boot partition cannot be written to {folder} ({error.strerror}), and the target is "
            "unchanged: name a folder with room in TMPDIR"
        )


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts of an image that was read. Its partition `boot` is copied to `boot_copy`.

    `sha256` is of the image unpacked, `file_sha256` of the file as it is.
    """

    path: Path
    size_bytes: int
    sha256: str
    file_sha256: str
    boot: Partition
    boot_copy: Path


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
    file_sha256 = _digest(path)
    image = hashlib.sha256()
    head = bytearray()
    size_bytes = 0
    boot: Partition | None = None
    needed_bytes = 0
    with boot_copy.open("wb") as copy:
        for block in blocks(path):
            image.update(block)
            if len(head) < HEAD_BYTES:
                head += block[: HEAD_BYTES - len(head)]
                if len(head) == HEAD_BYTES:
                    boot, needed_bytes = _boot(path, head)
            if boot is not None:
                begin, end = max(boot.start_bytes, size_bytes), min(boot.end_bytes, size_bytes + len(block))
                if begin < end:
                    copy.write(block[begin - size_bytes : end - size_bytes])
            size_bytes += len(block)
            if size_bytes > MAX_IMAGE_BYTES:
                raise ImageInvalid(f"{path} unpacks to more than {MAX_IMAGE_BYTES >> 30} GiB: it is no board's image")
            on_bytes(len(block))
    if boot is None:
        raise ImageInvalid(f"{path} holds {size_bytes} bytes: it is no image of a disk")
    if needed_bytes > size_bytes:
        raise ImageInvalid(
            f"{path} holds {size_bytes} bytes and its partitions reach to {needed_bytes}: it is truncated, "
            "download it again"
        )
    if sha256 is not None and sha256.lower() not in {file_sha256, image.hexdigest()}:
        raise ImageInvalid(
            f"{path} has SHA-256 {file_sha256} ({image.hexdigest()} unpacked), not {sha256.lower()}: download it again"
        )
    return Survey(
        path=path,
        size_bytes=size_bytes,
        sha256=image.hexdigest(),
        file_sha256=file_sha256,
        boot=boot,
        boot_copy=boot_copy,
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
        raise ImageInvalid(f"{path} cannot be read: {exc.strerror or exc}") from exc


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open the unpacked image, by the first bytes of the file and not by its name."""
    with path.open("rb") as file:
        start = file.read(len(_XZ))
    if start == _XZ:
        with lzma.open(path) as xz:
            yield xz
    elif start.startswith(_GZIP):
        with gzip.open(path) as zipped:
            yield cast("IO[bytes]", zipped)
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


def _boot(path: Path, head: bytearray) -> tuple[Partition, int]:
    try:
        return boot_partition(bytes(head))
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
