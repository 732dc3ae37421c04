"""Detection of the board: by the names of its device tree, or else by DMI and the kind of processor."""

# coverage: every branch

import os
import platform
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from devices.profile import Profile
from devices.sysfs import read_text

_COMPATIBLE = "proc/device-tree/compatible"
_MODEL = "proc/device-tree/model"
_MAX_BYTES = 4096
_TOTAL = re.compile(r"^MemTotal:\s+(\d+) kB$", re.MULTILINE)
_PRETTY = re.compile(r'^PRETTY_NAME="?([^"\n]*)"?$', re.MULTILINE)
_GENERIC = {"aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86-64", "amd64": "x86-64"}


@dataclass(frozen=True, kw_only=True)
class Detected:
    """A detected board. None is a fact that it does not state; an unsupported processor has no `profile`."""

    profile: Profile | None
    model: str | None
    compatible: tuple[str, ...]
    machine: str
    memory_mib: int | None
    cores: int | None
    system: str | None
    python: str | None


def detect(profiles: tuple[Profile, ...], root: Path = Path("/"), machine: str | None = None) -> Detected:
    """Return the board whose file system is `root`."""
    machine = machine or platform.machine()
    compatible = _names(root / _COMPATIBLE)
    total = _TOTAL.search(read_text(root / "proc/meminfo") or "")
    pretty = _PRETTY.search(read_text(root / "etc/os-release") or "")
    return Detected(
        profile=match(profiles, compatible, machine),
        model=next(iter(_names(root / _MODEL)), None) or _dmi(root),
        compatible=compatible,
        machine=machine,
        memory_mib=None if total is None else int(total[1]) // 1024,
        cores=_cores(root),
        system=None if pretty is None else pretty[1],
        python=platform.python_version() if root == Path("/") else None,
    )


def match(profiles: tuple[Profile, ...], compatible: tuple[str, ...], machine: str) -> Profile | None:
    """Return the profile of the most specific name that any profile lists, else that of the kind of processor.

    A device tree lists its names from the most specific to the most general.
    """
    for name in compatible:
        for profile in profiles:
            fact = profile.facts.compatible
            if fact is not None and any(fnmatchcase(name, pattern) for pattern in fact.value):
                return profile
    wanted = _GENERIC.get(machine.lower())
    return next((profile for profile in profiles if profile.name == wanted), None)


def _names(path: Path) -> tuple[str, ...]:
    """Return the strings of a device tree's property, which end with a zero byte each."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError:
        return ()
    return tuple(text for part in data.split(b"\0") if (text := part.decode("ascii", "replace").strip()))


def _dmi(root: Path) -> str | None:
    """Return the maker and the product as the firmware of a PC states them."""
    words = [read_text(root / "sys/class/dmi/id" / name) or "" for name in ("sys_vendor", "product_name")]
    return " ".join(filter(None, words)) or None


def _cores(root: Path) -> int | None:
    if root == Path("/"):
        return os.cpu_count()
    found = len(list((root / "sys/devices/system/cpu").glob("cpu[0-9]*")))
    return found or None
