"""Rails: voltages, currents and powers of a board's sensors, and which of them add up to the board."""

# coverage: every branch

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import pread

from devices.meters.meter import MAX_NUMBER_BYTES, MeterFacts, NumberFile

INLETS = ("VDD_IN", "POM_5V_IN", "VDD_5V_IN", "5V_IN", "VIN", "VIN_SYS", "VDD_MUX")
"""Rails of Jetson modules that carry everything the others do (VDD_IN: Orin Nano, Orin NX, Xavier NX, TX2)."""
PARTS = ("VDDQ_VDD2_1V8AO",)
"""Rails that are fed by another measured rail: AGX Orin's memory hangs on VIN_SYS_5V0."""
UNUSED = re.compile(r"NC|sum of shunt voltages|", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Rail:
    """One power: a file of its own, or a voltage and a current. Factors turn the files' numbers into watts."""

    name: str
    factor: float
    power: NumberFile | None = None
    voltage: NumberFile | None = None
    current: NumberFile | None = None

    @property
    def files(self) -> tuple[NumberFile, ...]:
        """What is read; the product of their numbers and the factor is the power."""
        return tuple(file for file in (self.power, self.voltage, self.current) if file is not None)

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files:
            file.close()


def whole_board(rails: Sequence[Rail]) -> list[Rail]:
    """The rails to add: the inlet alone where there is one, else all that are not part of another."""
    for inlet in INLETS:
        found = [rail for rail in rails if rail.name.upper() == inlet]
        if found:
            return found[:1]
    return [rail for rail in rails if rail.name.upper() not in PARTS]


class RailMeter:
    """Adds the power of some rails.

    It is read fifty times a second on boards that have other things to do: so all of it is in one loop.
    """

    def __init__(self, facts: MeterFacts, rails: Sequence[Rail]) -> None:
        self.facts = facts
        self._rails = list(rails)
        self._reads = tuple((rail.factor, tuple(file.descriptor for file in rail.files)) for rail in rails)

    def read(self) -> tuple[float, ...] | None:
        """Power in watts; None if a rail cannot be read. A little below zero, by an offset, is zero."""
        total_w = 0.0
        try:
            for power_w, descriptors in self._reads:
                for descriptor in descriptors:
                    power_w *= int(pread(descriptor, MAX_NUMBER_BYTES, 0))  # noqa: PLW2901 - from factor to power
                if power_w > 0.0:
                    total_w += power_w
        except (OSError, ValueError):
            return None
        return (total_w,)

    def close(self) -> None:
        """Let go of the rails."""
        for rail in self._rails:
            rail.close()
        self._rails = []
        self._reads = ()
