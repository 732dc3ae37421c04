"""Writing an image with the boot partition that was set up in place of its own, and reading it back."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from devices.flashing.image import BLOCK_BYTES, Progress
from devices.flashing.partitions import Partition

_SYNC_BYTES = 64 << 20
"""The bytes between two syncs to the disk, so that the progress is the card's and not the memory's."""


class ReadBackDiffers(Exception):
    """The target returns other bytes than were written: the card, its reader or the disk is faulty."""


def with_boot_partition(blocks: Iterable[bytes], boot: Partition, content: Path) -> Iterator[bytes]:
    """Yield the blocks of an image, with the bytes of its boot partition taken from the file `content`."""
    at = 0
    with content.open("rb") as file:
        for block in blocks:
            begin, end = max(boot.start_bytes, at), min(boot.end_bytes, at + len(block))
            if begin < end:
                file.seek(begin - boot.start_bytes)
                inside = file.read(end - begin)
                yield block[: begin - at] + inside + block[begin - at + len(inside) :]
            else:
                yield block
            at += len(block)


def write(descriptor: int, blocks: Iterable[bytes], progress: Progress) -> tuple[str, int]:
    """Write all blocks from the start on and sync them; return their SHA-256 and size in bytes. Raises OSError."""
    digest = hashlib.sha256()
    size_bytes = unsynced_bytes = 0
    for block in blocks:
        view = memoryview(block)
        while view:
            count = os.write(descriptor, view)
            view = view[count:]
        digest.update(block)
        size_bytes += len(block)
        unsynced_bytes += len(block)
        if unsynced_bytes >= _SYNC_BYTES:
            os.fdatasync(descriptor)
            unsynced_bytes = 0
        progress(len(block))
    os.fsync(descriptor)
    return digest.hexdigest(), size_bytes


def read_back(descriptor: int, size_bytes: int, sha256: str, progress: Progress) -> None:
    """Read the bytes back, from the disk and not from memory where the kernel allows, and compare their SHA-256.

    Raises ReadBackDiffers and OSError.
    """
    with suppress(OSError):  # a file system that cannot drop its cache is read from the cache
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    digest = hashlib.sha256()
    at = 0
    while at < size_bytes:
        block = os.pread(descriptor, min(BLOCK_BYTES, size_bytes - at), at)
        if not block:
            raise ReadBackDiffers(
                f"the target ends at byte {at} of {size_bytes}: it is smaller than it claims, use another"
            )
        digest.update(block)
        at += len(block)
        progress(len(block))
    if digest.hexdigest() != sha256:
        raise ReadBackDiffers("the target returns other bytes than were written: the card or its reader is faulty")
