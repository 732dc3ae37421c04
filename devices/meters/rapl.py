"""RAPL: the energy counters of x86 processors under /sys/class/powercap.

A package holds its cores and its integrated graphics, so their zones are left out; memory (`dram`) is beside it. The
zone `psys`, where there is one, counts the packages a second time and is left out too. Linux lets root alone read the
counters (CVE-2020-8694).
"""

# coverage: every branch

import re
from pathlib import Path

from devices.meters.meter import MeterAbsent, MeterFacts
from devices.sysfs import NumberFile, read_number, read_text

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_COUNTED = re.compile(r"package-\d+(-die-\d+)?|dram")
_DEFAULT_RANGE_UJ = 2.0**32


class RaplMeter:
    """The joules of processor packages and memory. Raises MeterAbsent."""

    def __init__(self, root: Path = Path("/")) -> None:
        base = root / "sys/class/powercap"
        zones = sorted(path for path in _folders(base) if _ZONE.fullmatch(path.name))
        if not zones:
            raise MeterAbsent(
                "rapl: this kernel offers no energy counters (/sys/class/powercap has no intel-rapl zone)"
            )
        named = {zone: read_text(zone / "name") or "" for zone in zones}
        zones = [zone for zone in zones if _COUNTED.fullmatch(named[zone])]
        if not zones:
            raise MeterAbsent("rapl: no zone is a processor package or memory")
        self._counters: list[NumberFile] = []
        try:
            for zone in zones:
                self._counters.append(NumberFile(zone / "energy_uj"))
        except PermissionError as exc:
            self.close()
            raise MeterAbsent(
                f"rapl: the energy counters can be read by root alone; run as root, or let a group read {exc.filename}"
            ) from exc
        except OSError as exc:
            self.close()
            raise MeterAbsent(f"rapl: {exc.filename} cannot be opened: {exc.strerror}") from exc
        if self.read() is None:
            self.close()
            raise MeterAbsent("rapl: an energy counter does not hold a number")
        ranges_uj = [read_number(zone / "max_energy_range_uj") or _DEFAULT_RANGE_UJ for zone in zones]
        self.facts = MeterFacts(
            source="rapl",
            covers=f"{', '.join(named[zone] for zone in zones)}; not the board, disks, network and the power supply",
            rate_hz=10.0,
            resolution=1e-3,  # a counter moves about every millisecond: some milliwatts' worth
            gain_error=0.03,
            counter_ranges_j=tuple(range_uj / 1e6 for range_uj in ranges_uj),
        )

    def read(self) -> tuple[float, ...] | None:
        """Return the counters, in joules; None if one cannot be read now."""
        values = [counter.read() for counter in self._counters]
        found = tuple(value / 1e6 for value in values if value is not None)
        return found if len(found) == len(values) else None

    def close(self) -> None:
        """Close the counters' files."""
        for counter in self._counters:
            counter.close()
        self._counters = []


def _folders(base: Path) -> list[Path]:
    try:
        return [path for path in base.iterdir() if path.is_dir()]
    except OSError:
        return []
