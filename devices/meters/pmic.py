"""The power management chip of a Raspberry Pi 5: currents and voltages of twelve rails, by `pmic_read_adc`.

Firmwares print a reading as ` VDD_CORE_A current(7)=1.91102000A` and ` VDD_CORE_V volt(15)=0.87355220V`, or plainly as
`VDD_CORE_A=1.9110A` and `VDD_CORE_V=0.8735V`. A rail's current and voltage are found by its name: the numbers in
brackets are the converter's channels. EXT5V (the inlet) and BATT have a voltage and no current, and are left out.
"""

# coverage: every branch

import math
import re

from devices.firmware import Ask, FirmwareSilent
from devices.meters.meter import MeterAbsent, MeterFacts

_READING = re.compile(
    r"^\s*(\w+)_([AV])(?:\s+(?:current|volt|voltage)\(\d+\))?\s*=\s*(\d+(?:\.\d*)?)([AV])\s*$", re.MULTILINE
)


def rails_w(text: str) -> dict[str, float]:
    """Return the power of each rail in the output of `pmic_read_adc` that has a current and a voltage."""
    found: dict[tuple[str, str], float] = {}
    for name, kind, value, unit in _READING.findall(text):
        if kind == unit:
            found[name, kind] = float(value)
    powers = {name: found[name, "A"] * found[name, "V"] for name, kind in found if kind == "A" and (name, "V") in found}
    return {name: power for name, power in powers.items() if math.isfinite(power)}


class PmicMeter:
    """The rails' power together. Raises MeterAbsent."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        try:
            self._rails = rails_w(ask("pmic_read_adc")).keys()
        except FirmwareSilent as exc:
            raise MeterAbsent(f"pmic: {exc}") from exc
        if not self._rails:
            raise MeterAbsent("pmic: this board's firmware measures no currents (of Raspberry Pis, the 5 alone does)")
        self.facts = MeterFacts(
            source="pmic",
            covers=f"{len(self._rails)} rails behind the power chip; not its losses, USB devices, fan and HATs on 5 V",
            rate_hz=10.0,
            resolution=0.005,
            gain_error=0.05,
        )

    def read(self) -> tuple[float, ...] | None:
        """Return the power in watts; None if a rail that was there at first is missing."""
        try:
            powers = rails_w(self._ask("pmic_read_adc"))
        except FirmwareSilent:
            return None
        return (sum(powers.values()),) if self._rails <= powers.keys() else None

    def close(self) -> None:
        """Close nothing: the firmware is kept open by its opener."""
