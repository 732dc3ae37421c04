"""The interface of all meters, and readers of a running kernel's files.

Meters take the root of the file system as an argument, so that a recorded tree can stand for a board.
"""

# coverage: every branch

import os
from pathlib import Path
from typing import Protocol

import msgspec

MAX_NUMBER_BYTES = 64
INA_HZ = 51.0
"""The rate at which INA chips are read: 50 times a second, with a margin for readings that come late."""


class MeterAbsent(Exception):
    """A meter is not on this board or cannot be used; the message is one sentence with the reason and what to do."""


class MeterFacts(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The properties of a meter, which do not change while it is open; the energy journal records them as an array.

    `source` is a short name, such as `rapl` or `hwmon:ina3221`. `covers` states for people what the figures include and
    what they leave out. `rate_hz` is how often reading the meter is worth it. `resolution` is the smallest step of a
    reading: watts, or joules for counters. `gain_error` is the largest error in proportion to the reading. With
    `estimated`, the figures come from a model and nothing is measured. `counter_ranges_j` is where each counter starts
    again at zero; None for a meter that reads watts.
    """

    source: str
    covers: str
    rate_hz: float
    resolution: float
    gain_error: float
    estimated: bool = False
    counter_ranges_j: tuple[float, ...] | None = None


class Meter(Protocol):
    """A device that reads power, or counts energy. A Protocol, so that a test needs no sensor."""

    @property
    def facts(self) -> MeterFacts:
        """The properties of the meter."""
        ...

    def read(self) -> tuple[float, ...] | None:
        """Return one value in watts, or every counter in joules; None if the meter cannot be read now.

        It never raises and takes less than a second.
        """
        ...

    def close(self) -> None:
        """Close the meter's files; it is not read afterwards."""
        ...


class NumberFile:
    """An open file of the kernel with one number in it: reading it again is one system call.

    Raises OSError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> float | None:
        """Return the number; None if the file holds none or cannot be read now."""
        try:
            return float(int(os.pread(self.descriptor, MAX_NUMBER_BYTES, 0)))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def read_text(path: Path) -> str | None:
    """Return a small file's text without the white space around it; None if it cannot be read."""
    try:
        return path.read_bytes()[:4096].decode("utf-8", "replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """Return the number in a small file; None if there is none."""
    text = read_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def numbered(path: Path) -> tuple[str, int]:
    """Return a key that sorts hwmon2 before hwmon10."""
    digits = "".join(filter(str.isdigit, path.name))
    return path.name.rstrip("0123456789"), int(digits or 0)
