"""INA219, INA226 and INA260 on an I²C bus that no kernel driver serves: /dev/i2c-<n>.

The chip stays as it was set up: with its defaults after power-on it converts all the time. INA219 and INA226 measure
the voltage over a shunt, whose resistance the source states; INA260 has its own. Registers have 16 bits, high byte
first.
(Texas Instruments SBOS448, SBOS547, SBOS656)
"""

import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from devices.meters.meter import INA_HZ, MeterAbsent, MeterFacts
from devices.meters.plausibility import feed_doubt

_I2C_SLAVE = 0x0703
_MAKER, _MODEL = 0xFE, 0xFF
_TEXAS = 0x5449
_MODELS = {0x226: "ina226", 0x227: "ina260", 0x228: "ina228", 0x238: "ina238", 0x231: "ina231"}
"""What the first three digits of the model's register say; an INA219 has neither register. (SBOS547, SBOS656)"""
_SPEC = re.compile(r"(ina\d+)@(0x[0-9a-f]{1,2})(?:,bus=(\d{1,3}))?(?:,shunt=(\d+(?:\.\d+)?|\.\d+))?", re.IGNORECASE)


class Bus(Protocol):
    """A seam: one chip on a bus."""

    def word(self, register: int) -> int:
        """Return a register, 0 to 65535. Raises OSError."""
        ...

    def close(self) -> None:
        """Close the bus."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChipRegisters:
    """The registers of a kind of chip, and the size of a step in each.

    `current_step` is volts over the shunt, or amperes for a chip with a shunt of its own; at `full` it is saturated.
    """

    current_register: int
    current_step: float
    needs_shunt: bool
    voltage_step: float
    voltage_shift: int = 0
    voltage_register: int = 2
    full: int = 0x7FFF


CHIPS = {
    "ina219": ChipRegisters(
        current_register=1, current_step=10e-6, needs_shunt=True, voltage_step=4e-3, voltage_shift=3, full=32000
    ),
    "ina226": ChipRegisters(current_register=1, current_step=2.5e-6, needs_shunt=True, voltage_step=1.25e-3),
    "ina260": ChipRegisters(current_register=1, current_step=1.25e-3, needs_shunt=False, voltage_step=1.25e-3),
}


class DeviceBus:
    """A chip on /dev/i2c-<n>. Raises OSError: EBUSY if a kernel driver serves the chip, which hwmon then shows."""

    def __init__(self, device: Path, address: int) -> None:
        self._descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._descriptor, _I2C_SLAVE, address)
        except OSError:
            os.close(self._descriptor)
            raise

    def word(self, register: int) -> int:
        """Return a register. Raises OSError."""
        os.write(self._descriptor, bytes([register]))
        return int.from_bytes(os.read(self._descriptor, 2), "big")

    def close(self) -> None:
        """Close the bus."""
        os.close(self._descriptor)


class InaMeter:
    """The power through one INA chip. Raises MeterAbsent."""

    def __init__(self, kind: str, bus: Bus, shunt_ohm: float | None) -> None:
        chip = CHIPS.get(kind.lower())
        if chip is None:
            raise MeterAbsent(f"i2c: {kind} is not known; known are {', '.join(CHIPS)}")
        if chip.needs_shunt and not (shunt_ohm and shunt_ohm > 0):
            raise MeterAbsent(f"i2c: {kind} needs the resistance of its shunt in ohms, as in {kind}@0x40,shunt=0.1")
        self._chip, self._bus = chip, bus
        self._check_model(kind.lower())
        self._step_a = chip.current_step / (shunt_ohm or 1.0) if chip.needs_shunt else chip.current_step
        full_a = chip.full * self._step_a
        shunt = f"; shunt {shunt_ohm:g} ohm" if chip.needs_shunt else ""
        self._check_feed(kind.lower(), full_a)
        self.facts = MeterFacts(
            source=f"i2c:{kind.lower()}",
            covers=f"what flows through its shunt: the whole board if it sits in the feed{shunt}, up to {full_a:.3g} A",
            rate_hz=INA_HZ,
            resolution=self._step_a * 5.0,
            gain_error=0.02,
        )

    def read(self) -> tuple[float, ...] | None:
        """Return the power in watts; None if the chip does not answer, is saturated, or measures no current."""
        try:
            current, volts = self._current(), self._volts()
        except OSError:
            return None
        if not 0 < current < self._chip.full or volts <= 0.0:
            return None
        return (current * self._step_a * volts,)

    def _current(self) -> int:
        raw = self._bus.word(self._chip.current_register)
        return raw - 0x10000 if raw & 0x8000 else raw

    def _volts(self) -> float:
        return (self._bus.word(self._chip.voltage_register) >> self._chip.voltage_shift) * self._chip.voltage_step

    def _check_model(self, kind: str) -> None:
        """Raise MeterAbsent if the chip says that it is another one; an INA219 says nothing."""
        try:
            maker, model = self._bus.word(_MAKER), self._bus.word(_MODEL)
        except OSError:
            return
        found = _MODELS.get(model >> 4, "another chip") if maker == _TEXAS else None
        if found not in {None, kind}:
            raise MeterAbsent(f"i2c: the chip at that address is {found}, not {kind}: its steps are others")
        if found is None and kind != "ina219":
            raise MeterAbsent(f"i2c: the chip at that address is no {kind}, which would say so: is it an ina219?")

    def _check_feed(self, kind: str, full_a: float) -> None:
        try:
            current, volts = self._current(), self._volts()
        except OSError as exc:
            raise MeterAbsent(f"i2c: no {kind} answers: {exc.strerror}") from exc
        reason = feed_doubt(volts=volts, amperes=current * self._step_a, full_a=full_a)
        if reason is not None:
            raise MeterAbsent(f"i2c:{kind}: {reason}")

    def close(self) -> None:
        """Close the bus."""
        self._bus.close()


def open_i2c(spec: str, root: Path = Path("/")) -> InaMeter:
    """Open the chip that `ina226@0x40,bus=1,shunt=0.1` describes. Raises MeterAbsent; ValueError for another form."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"{spec!r} does not describe a chip: write as in ina226@0x40,bus=1,shunt=0.1")
    kind, address, number, shunt = match.groups()
    device = root / f"dev/i2c-{number or 1}"
    try:
        bus = DeviceBus(device, int(address, 16))
    except OSError as exc:
        raise MeterAbsent(f"i2c: {device} at {address} cannot be used: {exc.strerror}") from exc
    try:
        return InaMeter(kind, bus, None if shunt is None else float(shunt))
    except MeterAbsent:
        bus.close()
        raise
