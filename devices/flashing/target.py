"""The target of an image: a disk, or a file. It is opened only after all checks.

A file is written under another name and renamed when all of it is written and read back: it never appears half-written.
A disk that could not be written to its end raises WriteFailed.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.flashing.disk import TargetRefused, find_disk, refuse, size_words

_DEV = Path("/dev")
_RESERVE_BYTES = 1 << 20


class WriteFailed(Exception):
    """The target could not be written to its end; the sentence states what is left there."""


class DiskTarget:
    """A whole disk, such as a card in a reader. Raises TargetRefused."""

    def __init__(self, path: Path, root: Path = Path("/")) -> None:
        self._path, self._root = path, root
        self._disk = find_disk(path, root)

    def describe(self) -> str:
        """Return the disk for people."""
        return f"{self._disk}: all that is on it is lost"

    def check(self, need_bytes: int) -> None:
        """Raise TargetRefused if `need_bytes` may not be written."""
        self._disk = find_disk(self._path, self._root)  # as it is now, not when it was named
        refuse(self._disk, need_bytes)

    def state_after_failure(self) -> str:
        """Return what is left after a failure."""
        return f"{self._path} is not usable and will not boot"

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open the disk for this process alone. Raises TargetRefused, and WriteFailed once something was written."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except PermissionError as exc:
            raise TargetRefused(f"{self._path} may not be written by this user: run the command with sudo") from exc
        except OSError as exc:
            why = "something uses it" if exc.errno == errno.EBUSY else exc.strerror
            raise TargetRefused(f"{self._path} cannot be opened: {why}") from exc
        try:
            yield descriptor
        except OSError as exc:
            raise WriteFailed(f"{self._path}: {exc.strerror or exc}; {self.state_after_failure()}") from exc
        finally:
            os.close(descriptor)


class FileTarget:
    """An image file. Raises TargetRefused."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise TargetRefused(f"{path} is a folder: give a file, such as {path / 'board.img'}")
        if not path.parent.is_dir():
            raise TargetRefused(f"there is no folder {path.parent} for {path.name}")
        self._path = path
        self._part = path.with_name(path.name + ".part")

    def describe(self) -> str:
        """Return the file for people."""
        return f"{self._path} (a file{', which is replaced' if self._path.exists() else ''})"

    def check(self, need_bytes: int) -> None:
        """Raise TargetRefused if `need_bytes` may not be written."""
        folder = os.statvfs(self._path.parent)
        free_bytes = folder.f_bavail * folder.f_frsize
        if free_bytes < need_bytes + _RESERVE_BYTES:
            raise TargetRefused(
                f"{self._path.parent} has {size_words(free_bytes)} free and the image needs "
                f"{size_words(need_bytes + _RESERVE_BYTES)}"
            )
        if not os.access(self._path.parent, os.W_OK):
            raise TargetRefused(f"{self._path.parent} may not be written by this user")

    def state_after_failure(self) -> str:
        """Return what is left after a failure."""
        return f"{self._path} is as it was before"

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open a new file, which takes the target's name at the end. Raises TargetRefused and WriteFailed."""
        try:
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise TargetRefused(f"{self._part} cannot be made: {exc.strerror}") from exc
        try:
            yield descriptor
            os.close(descriptor)
            descriptor = -1
            self._part.replace(self._path)
        except OSError as exc:
            raise WriteFailed(f"{self._path}: {exc.strerror or exc}; {self.state_after_failure()}") from exc
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._part.unlink(missing_ok=True)


def open_target(path: Path, root: Path = Path("/")) -> DiskTarget | FileTarget:
    """Return the target that a path names; a path in /dev must be a disk. Raises TargetRefused."""
    if path.is_block_device() or _DEV in path.absolute().parents:
        return DiskTarget(path, root)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise TargetRefused(f"{path} is neither a disk nor a file")
    return FileTarget(path)
