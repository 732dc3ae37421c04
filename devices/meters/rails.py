"""Rails: voltages, currents and powers of a board's sensors, and which of them add up to the board."""

# coverage: every branch

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import pread

from devices.meters.meter import MeterFacts
from devices.sysfs import MAX_NUMBER_BYTES, NumberFile

INLETS = ("VDD_IN", "POM_5V_IN", "VDD_5V_IN", "5V_IN", "VIN", "VIN_SYS", "VDD_MUX")
"""Rails of Jetson modules that feed all others (VDD_IN: Orin Nano, Orin NX, Xavier NX, TX2)."""
PARTS = ("VDDQ_VDD2_1V8AO",)
"""Rails that another measured rail feeds: VIN_SYS_5V0 feeds AGX Orin's memory."""
UNUSED = re.compile(r"NC|sum of shunt voltages|", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Rail:
    """The power of one rail: a file of its own, or a voltage and a current; `factor` turns their product into watts."""

    name: str
    factor: float
    power: NumberFile | None = None
    voltage: NumberFile | None = None
    current: NumberFile | None = None

    @property
    def files(self) -> tuple[NumberFile, ...]:
        """The files to read; the product of their numbers and the factor is the power."""
        return tuple(file for file in (self.power, self.voltage, self.current) if file is not None)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def whole_board(rails: Sequence[Rail]) -> list[Rail]:
    """Return the rails to add: the inlet alone if there is one, or else all that no other measured rail feeds."""
    for inlet in INLETS:
        found = [rail for rail in rails if rail.name.upper() == inlet]
        if found:
            return found[:1]
    return [rail for rail in rails if rail.name.upper() not in PARTS]


class RailMeter:
    """The power of some rails together.

    It is read fifty times a second beside the training, so all of the work is in one loop.
    """

    def __init__(self, facts: MeterFacts, rails: Sequence[Rail]) -> None:
        self.facts = facts
        self._rails = list(rails)
        self._reads = tuple((rail.factor, tuple(file.descriptor for file in rail.files)) for rail in rails)

    def read(self) -> tuple[float, ...] | None:
        """Return the power in watts; None if a rail cannot be read, or all read zero, which no board takes.

        A rail below zero, by an offset, counts as zero.
        """
        total_w = 0.0
        try:
            for power_w, descriptors in self._reads:
                for descriptor in descriptors:
                    power_w *= int(pread(descriptor, MAX_NUMBER_BYTES, 0))  # noqa: PLW2901 - from factor to power
                if power_w > 0.0:
                    total_w += power_w
        except (OSError, ValueError):
            return None
        return (total_w,) if total_w > 0.0 else None

    def close(self) -> None:
        """Close the rails' files."""
        for rail in self._rails:
            rail.close()
        self._rails = []
        self._reads = ()
