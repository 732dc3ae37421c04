"""A board's health: temperature, frequency and throttling of its processor. None is what the board does not state."""

# coverage: every branch

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devices.firmware import Ask, FirmwareSilent, open_firmware
from devices.sysfs import numbered, read_number, read_text
from devices.throttling import Throttling

FLAGS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
"""Bits 0 to 3 of `vcgencmd get_throttled`; the same since boot are 16 bits higher."""
_SINCE_BOOT = 16
_PROCESSOR = re.compile(r"cpu|soc|x86_pkg_temp|tj", re.IGNORECASE)
_THROTTLED = re.compile(r"(?:throttled=)?(?:0x)?([0-9a-f]{1,8})\s*", re.IGNORECASE)
_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass(frozen=True, kw_only=True)
class Health:
    """A board at one moment.

    `cpu_hz` is the mean over the cores. `throttled` names what holds the board back now, such as `under_voltage`, and
    `throttled_since_boot` what has held it back at some time since it started.
    """

    temperature_c: float | None
    cpu_hz: float | None
    throttled: tuple[str, ...] | None
    throttled_since_boot: tuple[str, ...] | None


class HealthProbe:
    """Reads a board's health and never raises; throttling is by a Raspberry Pi's firmware, or else by the kernel."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._zone = _processor_zone(root)
        self._throttling = Throttling(root)
        self._ask: Ask | None
        try:
            self._ask = open_firmware(root)
        except FirmwareSilent:
            self._ask = None

    def __call__(self) -> Health:
        """Return the board's health now."""
        flags, throttled = self._flags(), self._throttling()
        if flags is not None:
            names = _names(flags)
            throttled = (*names, *(name for name in throttled or () if name not in names))
        return Health(
            temperature_c=None if self._zone is None else _celsius(self._zone),
            cpu_hz=_frequency_hz(self._root),
            throttled=throttled,
            throttled_since_boot=None if flags is None else _names(flags >> _SINCE_BOOT),
        )

    def _flags(self) -> int | None:
        text = read_text(self._root / _FILE)
        if self._ask is not None:
            with suppress(FirmwareSilent):
                text = self._ask("get_throttled")
        match = None if text is None else _THROTTLED.fullmatch(text)
        return None if match is None else int(match[1], 16)


def _names(flags: int) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(FLAGS) if flags >> bit & 1)


def _processor_zone(root: Path) -> Path | None:
    """Return the processor's thermal zone: the one with its name, or else the first one."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=numbered)
    named = [zone for zone in zones if _PROCESSOR.search(read_text(zone / "type") or "")]
    # A zone with the processor's name goes before one of the whole chip.
    named.sort(key=lambda zone: "cpu" not in (read_text(zone / "type") or "").lower())
    return next(iter(named or zones), None)


def _celsius(zone: Path) -> float | None:
    value = read_number(zone / "temp")
    return None if value is None or not -100e3 < value < 250e3 else value / 1e3


def _frequency_hz(root: Path) -> float | None:
    """Return the mean frequency over the policies; big and little cores have one each."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
    found = [khz for policy in policies if (khz := read_number(policy / "scaling_cur_freq")) is not None and khz > 0]
    return sum(found) / len(found) * 1e3 if found else None
