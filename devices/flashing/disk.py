"""A disk to overwrite: the facts that the kernel states of it, and the reasons to refuse it.

They are read from /sys/class/block, /proc/self/mountinfo and /proc/swaps below a root that tests replace. A disk is
refused if any part of it is in use: mounted, swapped to, or part of a volume, an array or an encrypted device.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from devices.sysfs import read_number, read_text

_SECTOR_BYTES = 512
_SYSTEM = frozenset({"/", "/boot", "/boot/efi", "/boot/firmware", "/home", "/usr", "/var"})
"""The mount points of a disk that the computer runs from."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


class TargetRefused(Exception):
    """The target may not or cannot be written; the sentence states why. Nothing has been written."""


def size_words(size_bytes: int) -> str:
    """Return a disk's or an image's size for people."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 10e9 else f"{size_bytes / 1e6:.0f} MB"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A whole disk. `mounts` are its own and its partitions' mount points, `holders` the devices built on them."""

    name: str
    model: str | None
    size_bytes: int
    is_removable: bool
    is_read_only: bool
    mounts: tuple[str, ...]
    holders: tuple[str, ...]

    def __str__(self) -> str:
        """Return name, model and size, for people."""
        kind = "removable" if self.is_removable else "fixed"
        return f"/dev/{self.name} ({self.model or 'no model'}, {size_words(self.size_bytes)}, {kind})"


def find_disk(path: Path, root: Path = Path("/")) -> Disk:
    """Return the disk behind a block device. Raises TargetRefused unless it is a whole disk."""
    try:
        found = path.stat()
    except OSError as exc:
        known = ", ".join(f"/dev/{name}" for name in whole_disks(root)) or "none"
        raise TargetRefused(f"there is no disk {path} ({exc.strerror}): known are {known}") from exc
    if not stat.S_ISBLK(found.st_mode):
        raise TargetRefused(f"{path} is no disk: give one such as /dev/sdX, or a file that ends in .img")
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    for folder in (root / "sys/class/block").glob("*"):
        if read_text(folder / "dev") == number:
            return disk_facts(folder.name, root)
    raise TargetRefused(f"the kernel lists no disk {path}: it will not be written")


def whole_disks(root: Path = Path("/")) -> list[str]:
    """Return the names of the disks that are no partitions and have a size."""
    folders = sorted((root / "sys/class/block").glob("*"))
    return [f.name for f in folders if not (f / "partition").exists() and (read_number(f / "size") or 0) > 0]


def disk_facts(name: str, root: Path = Path("/")) -> Disk:
    """Return the facts that the kernel states of a disk. Raises TargetRefused for a partition."""
    folder = root / "sys/class/block" / name
    if (folder / "partition").exists():
        raise TargetRefused(f"/dev/{name} is a partition: give the whole disk that it is on")
    parts = [folder, *sorted(child for child in folder.iterdir() if (child / "partition").exists())]
    numbers = {read_text(part / "dev") for part in parts}
    used = [place for number, place in _mounts(root) if number in numbers]
    swapped = {f"/dev/{part.name}" for part in parts} & _swaps(root)
    holders = [held.name for part in parts for held in sorted((part / "holders").glob("*"))]
    return Disk(
        name=name,
        model=read_text(folder / "device/model") or read_text(folder / "device/name"),
        size_bytes=int(read_number(folder / "size") or 0) * _SECTOR_BYTES,
        is_removable=read_text(folder / "removable") == "1",
        is_read_only=read_text(folder / "ro") == "1",
        mounts=(*used, *("[swap]" for _ in swapped)),
        holders=tuple(holders),
    )


def refuse(disk: Disk, need_bytes: int) -> None:
    """Raise TargetRefused if `need_bytes` must not be written to the disk."""
    if _SYSTEM & set(disk.mounts) or "[swap]" in disk.mounts:
        raise TargetRefused(
            f"{disk} is what this computer runs from ({', '.join(disk.mounts)}): it will not be written"
        )
    if disk.mounts:
        raise TargetRefused(f"{disk} is mounted at {', '.join(disk.mounts)}: unmount it first (umount, or eject it)")
    if disk.holders:
        raise TargetRefused(
            f"{disk} is part of {', '.join(disk.holders)} (a volume, array or encrypted device): free it first"
        )
    if disk.is_read_only:
        raise TargetRefused(f"{disk} is write-protected: move the card's switch, or use another")
    if disk.size_bytes == 0:
        raise TargetRefused(f"{disk} holds nothing: put a card into the reader")
    if disk.size_bytes < need_bytes:
        raise TargetRefused(f"{disk} is too small: the image needs {size_words(need_bytes)}")


def _mounts(root: Path) -> list[tuple[str, str]]:
    """Return the device number and the mount point of each mount (proc(5), mountinfo)."""
    try:
        text = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise TargetRefused(
            f"the list of mounts cannot be read ({exc.strerror}): without it no disk is written"
        ) from exc
    fields = [line.split() for line in text.splitlines()]
    return [(words[2], _ESCAPE.sub(lambda m: chr(int(m[1], 8)), words[4])) for words in fields if len(words) > 4]


def _swaps(root: Path) -> set[str]:
    try:
        lines = (root / "proc/swaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {line.split()[0] for line in lines[1:] if line.split()}
