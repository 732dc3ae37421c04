"""The system on an image, as its own files state it: os-release, Python, processor, and what sets up its first boot.

Nothing is guessed from a date or a name: official images of one Raspberry Pi OS go on after those of the next began.
(os-release(5), fstab(5), ELF-64 object file format)
"""

# coverage: every branch

import re
import struct
from dataclasses import dataclass
from typing import Protocol

PLACE = "/boot/firmware"
"""Where a system that can be set up mounts its boot partition."""
_ENTRY = re.compile(r"^([A-Z_]+)=(?:\"([^\"]*)\"|'([^']*)'|(\S*))\s*$", re.MULTILINE)
_PYTHON = re.compile(r"python(3\.\d{1,2})\Z")
_REFERENCE = re.compile(r"Raspberry Pi reference (\d{4}-\d{2}-\d{2})")
_MACHINES = {0x28: "armhf", 0xB7: "aarch64", 0x3E: "x86_64", 0x03: "i686", 0xF3: "riscv64"}


class SystemFiles(Protocol):
    """A root file system's files, by names relative to it."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content, through symbolic links; None if there is no such file."""

    def link(self, name: str) -> str | None:
        """Return where a symbolic link points to; None if there is no link of that name."""

    def exists(self, name: str) -> bool:
        """Return whether there is anything of that name."""


@dataclass(frozen=True, kw_only=True)
class InstalledSystem:
    """A system. `python` is X.Y; `boot_place` where it mounts its FAT partition; None: its files do not state it.

    `released` is the date that Raspberry Pi OS states, and None for other systems.
    """

    title: str
    architecture: str | None
    python: str | None
    boot_place: str | None
    released: str | None
    has_cloud_init: bool

    @property
    def is_raspberry_pi_os(self) -> bool:
        """Whether this is Raspberry Pi OS, whatever Debian it is made from."""
        return self.released is not None


def read_system(files: SystemFiles) -> InstalledSystem | None:
    """Return the system that a root file system holds; None where it has no os-release."""
    release = _text(files, "etc/os-release") or _text(files, "usr/lib/os-release")
    if not release:
        return None
    entries = {match[1]: match[2] or match[3] or match[4] or "" for match in _ENTRY.finditer(release)}
    python = _PYTHON.search(files.link("usr/bin/python3") or "")
    issue = _REFERENCE.search(_text(files, "etc/rpi-issue"))
    return InstalledSystem(
        title=entries.get("PRETTY_NAME") or entries.get("NAME") or entries.get("ID") or "a system without a name",
        architecture=architecture(files.read("usr/bin/env") or b""),
        python=None if python is None else python[1],
        boot_place=boot_place(_text(files, "etc/fstab")),
        released=None if issue is None else issue[1],
        has_cloud_init=files.exists("usr/bin/cloud-init") and not files.exists("etc/cloud/cloud-init.disabled"),
    )


def architecture(program: bytes) -> str | None:
    """Return the processor that a program is for, by its ELF header; None for anything else."""
    if len(program) < 20 or program[:4] != b"\x7fELF":
        return None
    order = "<" if program[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", program, 18)
    return _MACHINES.get(machine, f"processor {machine:#x}")


def boot_place(fstab: str) -> str | None:
    """Return where the first FAT file system of fstab is mounted; None if it has none."""
    for line in fstab.splitlines():
        words = line.split()
        if len(words) > 2 and words[2] in {"vfat", "msdos"} and not words[0].startswith("#"):
            return words[1]
    return None


def _text(files: SystemFiles, name: str) -> str:
    return (files.read(name) or b"").decode("utf-8", "replace")
