"""The interface of all meters.

Meters take the root of the file system as an argument, so that a recorded tree can stand for a board.
"""

# coverage: every branch

from typing import Protocol

import msgspec

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
