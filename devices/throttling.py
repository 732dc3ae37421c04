"""Throttling by the kernel's counters and cooling devices: for boards whose firmware does not state it.

- `throttled`: Intel processors count how often they have slowed themselves down for their heat
  (`thermal_throttle/*_throttle_count`).
- `over_current`: a Jetson counts how often its clocks were cut because the supply gave too much current or too little
  voltage (`oc*_event_cnt` of the hwmon chip soctherm_oc; which number is which differs between modules).
- `frequency_capped`: a cooling device that is the processor's frequency is at work.
"""

# coverage: every branch

import re
from pathlib import Path

from devices.sysfs import read_number, read_text

_COOLING = re.compile(r"(thermal-)?cpufreq-.*|Processor")


class Throttling:
    """Names what holds the processor back now, or has held it back since the call before."""

    def __init__(self, root: Path = Path("/")) -> None:
        cooling = (root / "sys/class/thermal").glob("cooling_device*")
        self._cooling = [path / "cur_state" for path in cooling if _COOLING.fullmatch(read_text(path / "type") or "")]
        chips = (root / "sys/class/hwmon").glob("hwmon*")
        alarms = [chip for chip in chips if read_text(chip / "name") == "soctherm_oc"]
        self._counters = {
            "throttled": list((root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")),
            "over_current": [path for chip in alarms for path in chip.glob("oc*_event_cnt")],
        }
        self._before = self._counts()

    def __call__(self) -> tuple[str, ...] | None:
        """Return the names, in order; None where the kernel has neither counters nor cooling devices."""
        if not self._cooling and not any(self._counters.values()):
            return None
        counts = self._counts()
        found = {name for name, count in counts.items() if count > self._before[name]}
        self._before = counts
        if any((read_number(path) or 0) > 0 for path in self._cooling):
            found.add("frequency_capped")
        return tuple(sorted(found))

    def _counts(self) -> dict[str, float]:
        return {name: sum(read_number(path) or 0 for path in paths) for name, paths in self._counters.items()}
