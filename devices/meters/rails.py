"""Rails: voltages, currents and powers of a board's sensors, and which of them add up to the board."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from devices.meters.meter import MeterFacts, NumberFile

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

    def power_w(self) -> float | None:
        """Power now; a little below zero, as a sensor's offset gives it, is zero."""
        if self.power is not None:
            value = self.power.read()
        else:
            assert self.voltage is not None
            assert self.current is not None
            volts, amperes = self.voltage.read(), self.current.read()
            value = None if volts is None or amperes is None else volts * amperes
        return None if value is None else max(0.0, value * self.factor)

    def close(self) -> None:
        """Let go of the files."""
        for file in (self.power, self.voltage, self.current):
            if file is not None:
                file.close()


def whole_board(rails: Sequence[Rail]) -> list[Rail]:
    """The rails to add: the inlet alone where there is one, else all that are not part of another."""
    for inlet in INLETS:
        found = [rail for rail in rails if rail.name.upper() == inlet]
        if found:
            return found[:1]
    return [rail for rail in rails if rail.name.upper() not in PARTS]


class RailMeter:
    """Adds the power of some rails."""

    def __init__(self, facts: MeterFacts, rails: Sequence[Rail]) -> None:
        self.facts = facts
        self._rails = list(rails)

    def read(self) -> tuple[float, ...] | None:
        """Power in watts; None if a rail cannot be read."""
        total_w = 0.0
        for rail in self._rails:
            power_w = rail.power_w()
            if power_w is None:
                return None
            total_w += power_w
        return (total_w,)

    def close(self) -> None:
        """Let go of the rails."""
        for rail in self._rails:
            rail.close()
        self._rails = []
