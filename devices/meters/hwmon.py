"""Power sensors of the kernel: /sys/class/hwmon.

A chip's power is its `power*_input` or `power*_average` (microwatts), or voltage times current (`in*_input` millivolts,
`curr*_input` milliamperes). Among them are INA219, INA226, INA230, INA260 (driver ina2xx), INA238 and the INA3221 of
Jetson modules, whose channels carry the rails' names.
"""

# coverage: every branch

import re
from dataclasses import dataclass
from pathlib import Path

from devices.meters.meter import INA_HZ, MeterAbsent, MeterFacts
from devices.meters.plausibility import feed_doubt
from devices.meters.rails import UNUSED, Rail, RailMeter, whole_board
from devices.sysfs import NumberFile, numbered, read_number, read_text

INA = re.compile(r"ina(\d{3}|2xx|3221x?)(-\S+)?")
_FULL_SCALE_V = {"ina219": 0.32, "ina226": 0.08192, "ina230": 0.08192, "ina231": 0.08192, "ina238": 0.16384}
"""The largest voltage over its shunt that a chip measures (Texas Instruments' data sheets)."""
_DEFAULT_SHUNT_OHM = 0.01
"""What the kernel's driver takes where nobody has stated it."""
SUPPLY = re.compile(r"(BAT|AC|ADP)\d*|(ucsi|tcpm).*|.*(_psy_|battery|charger).*|(bq|max17|axp|cw2)\d+.*", re.IGNORECASE)
"""Batteries, their chargers and power supplies, which state what a charger gives or a battery holds."""
WHOLE = ("power_meter",)
"""Chips other than INAs that measure the whole machine: ACPI's power meter."""
_POWER = re.compile(r"power(\d+)_(input|average)")
_CURRENT = re.compile(r"curr(\d+)_input")
_CHANNELS_3221 = 3


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A folder of hwmon that measures power."""

    folder: Path
    name: str

    @property
    def is_ina(self) -> bool:
        """True for a current sensor of the INA family."""
        return INA.fullmatch(self.name) is not None


def find_chips(root: Path) -> list[Chip]:
    """Return all chips that measure power, in the order of their numbers; batteries and chargers are none."""
    base = root / "sys/class/hwmon"
    folders = sorted(base.glob("hwmon*"), key=numbered)
    # Old kernels keep the attributes one folder deeper.
    folders = [folder if (folder / "name").exists() else folder / "device" for folder in folders]
    chips = [Chip(folder=folder, name=read_text(folder / "name") or "") for folder in folders]
    return [chip for chip in chips if chip.name and not _is_supply(chip) and _pairs(chip)]


def _is_supply(chip: Chip) -> bool:
    """Return whether a chip is a power supply's, by the kernel's class of it or by its name."""
    return SUPPLY.fullmatch(chip.name) is not None or (chip.folder / "device/type").exists()


def doubt(chip: Chip, *, is_fed_5v: bool) -> str | None:
    """Return why an INA chip with one channel cannot be in a board's feed; None if it can."""
    if not chip.is_ina or chip.name.startswith("ina3221"):
        return None
    volts_mv, current_ma = (read_number(chip.folder / name) for name in ("in1_input", "curr1_input"))
    shunt_ohm, full_v = _shunt_ohm([chip]), _FULL_SCALE_V.get(chip.name)
    return feed_doubt(
        volts=None if volts_mv is None or not is_fed_5v else volts_mv / 1e3,
        amperes=None if current_ma is None else current_ma / 1e3,
        full_a=None if shunt_ohm is None or full_v is None else full_v / shunt_ohm,
    )


def open_chips(chips: list[Chip], label: str) -> RailMeter:
    """Open a meter that adds the power of chips of one kind. Raises MeterAbsent."""
    rails: list[Rail] = []
    try:
        for chip in chips:
            for name, power, voltage, current in _pairs(chip):
                rails.append(_open(name, power, voltage, current))
    except PermissionError as exc:
        _close(rails)
        raise MeterAbsent(f"{label}: {exc.filename} may not be read: run as root, or let a group read it") from exc
    except OSError as exc:
        _close(rails)
        raise MeterAbsent(f"{label}: {exc.filename} cannot be opened: {exc.strerror}") from exc
    chosen = whole_board(rails)
    _close([rail for rail in rails if rail not in chosen])
    meter = RailMeter(_facts(chips, label, chosen), chosen)
    if meter.read() is None:
        meter.close()
        raise MeterAbsent(
            f"{label}: the sensor gives no number now, or 0 W, which no board takes ({chips[0].folder.name})"
        )
    return meter


def _facts(chips: list[Chip], label: str, rails: list[Rail]) -> MeterFacts:
    names = ", ".join(rail.name for rail in rails)
    ina = all(chip.is_ina for chip in chips)
    interval_ms = max((read_number(chip.folder / "update_interval") or 0.0 for chip in chips), default=0.0)
    rate_hz = INA_HZ if ina else 10.0
    if interval_ms > 0 and not ina:  # an INA is read more often than it averages: nothing is lost in between
        rate_hz = min(rate_hz, 1000 / interval_ms)
    shunt_ohm = _shunt_ohm(chips)
    shunt = "" if shunt_ohm is None else f"; shunt {shunt_ohm:g} ohm{_range_words(chips[0], shunt_ohm)}"
    gain_error = 0.02 if ina else 0.05
    if shunt_ohm == _DEFAULT_SHUNT_OHM:
        shunt += ", as the driver assumes unless it is told"
        gain_error = 0.05
    # Steps of 1 mA at 5 V where volts and amperes are multiplied. INA chips err by 0.5 to 1 %, the shunt adds as much.
    return MeterFacts(
        source=label,
        covers=f"{names}: all that these rails feed, and nothing before them{shunt}",
        rate_hz=max(rate_hz, 0.2),
        resolution=0.005 * len(rails),
        gain_error=gain_error,
    )


def _shunt_ohm(chips: list[Chip]) -> float | None:
    """Return the resistance that the driver of a chip alone counts with; None where it does not state it."""
    micro_ohm = read_number(chips[0].folder / "shunt_resistor") if len(chips) == 1 else None
    return None if micro_ohm is None or micro_ohm <= 0 else micro_ohm / 1e6


def _range_words(chip: Chip, shunt_ohm: float) -> str:
    full_v = _FULL_SCALE_V.get(chip.name)
    return "" if full_v is None else f", up to {full_v / shunt_ohm:.3g} A"


def _pairs(chip: Chip) -> list[tuple[str, Path | None, Path | None, Path | None]]:
    """Return each channel's name, and the file of its power or those of its voltage and current."""
    folder = chip.folder
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    powers: dict[int, str] = {}
    for match in filter(None, map(_POWER.fullmatch, sorted(files))):
        powers[int(match[1])] = match[0]  # an input, which comes later in the alphabet, wins over an average
    if powers:
        labels = {n: read_text(folder / f"power{n}_label") for n in powers}
        return [(labels[n] or f"{chip.name} power{n}", folder / powers[n], None, None) for n in sorted(powers)]
    found: list[tuple[str, Path | None, Path | None, Path | None]] = []
    for match in filter(None, map(_CURRENT.fullmatch, sorted(files))):
        n = int(match[1])
        if f"in{n}_input" not in files or (chip.name.startswith("ina3221") and n > _CHANNELS_3221):
            continue
        name = read_text(folder / f"in{n}_label")
        if read_text(folder / f"in{n}_enable") == "0" or (name is not None and UNUSED.fullmatch(name)):
            continue
        found.append((name or f"{chip.name} channel {n}", None, folder / f"in{n}_input", folder / match[0]))
    return found


def _open(name: str, power: Path | None, voltage: Path | None, current: Path | None) -> Rail:
    if power is not None:
        return Rail(name=name, factor=1e-6, power=NumberFile(power))
    assert voltage is not None
    assert current is not None
    volts = NumberFile(voltage)
    try:
        return Rail(name=name, factor=1e-6, voltage=volts, current=NumberFile(current))
    except OSError:
        volts.close()
        raise


def _close(rails: list[Rail]) -> None:
    for rail in rails:
        rail.close()
