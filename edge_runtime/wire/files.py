"""Atomic writes: write a sibling file, flush it to the disk, rename it into place. Errors name the file."""

# coverage: every branch

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

READ_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader, or a power cut, sees the old file or the new one.

    Raises OSError as the file system does.
    """
    with atomic_file(path, mode=mode) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file to write to, which appears at `path` when the block ends, and not at all if the block raises.

    Raises OSError, which names `path` where the system names no file or the sibling.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path):
        handle, sibling = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(sibling).replace(path)
        except BaseException:
            Path(sibling).unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def check_writable(path: Path, size_bytes: int = 1) -> None:
    """Raise OSError, which names `path`, unless a file of this size can be written there now.

    Called before long work whose result is to be there in the end. Nothing is left, no folder either.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as exc:
        exc.filename = str(path)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors of the system name `path` instead of no file, or of a sibling that the user does not know."""
    try:
        yield
    except OSError as exc:
        if exc.filename is None or Path(exc.filename).parent == path.parent:
            exc.filename, exc.filename2 = str(path), None
        raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal, reading a block at a time."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            state.update(block)
    return state.hexdigest()
