"""No meter: watts estimated from how busy the processor is. Every figure of it is labelled `estimated`.

power = idle + (full − idle) · utilisation, with the board's watts when idle and when all cores compute, as its maker
or a meter states them. Utilisation is the busy share of all cores since the reading before (/proc/stat), or this
process's share of them, so that several processes on one machine do not count it several times.
"""

# coverage: every branch

import os
import time
from pathlib import Path

from devices.meters.meter import MeterAbsent, MeterFacts
from devices.sysfs import read_text

_IDLE_FIELDS = (3, 4)  # idle, iowait
_GUEST_FIELD = 8  # guest time is in user time already


class ModelMeter:
    """Estimates power between two stated values. Raises MeterAbsent; ValueError unless 0 ≤ idle ≤ full watts."""

    def __init__(self, idle_w: float, full_w: float, root: Path = Path("/"), *, of_process: bool = False) -> None:
        if not 0 <= idle_w <= full_w < 1e5:
            raise ValueError(f"a model needs 0 ≤ idle ≤ full watts, not {idle_w:g} and {full_w:g}")
        self._idle_w, self._full_w = idle_w, full_w
        self._path = root / "proc/stat"
        self._times = self._process_times if of_process else self._machine_times
        first = self._times()
        if first is None:
            raise MeterAbsent("model: /proc/stat does not say how busy the processor is")
        self._last = first
        self._share = 0.0
        self.facts = MeterFacts(
            source="model",
            covers=f"nothing is measured: {idle_w:g} W idle to {full_w:g} W busy, by "
            + ("this process's share of the processor" if of_process else "the processor's utilisation"),
            rate_hz=10.0,
            resolution=0.0,
            gain_error=0.3,
            estimated=True,
        )

    def read(self) -> tuple[float, ...] | None:
        """Return the estimated power in watts."""
        times = self._times()
        if times is None:
            return None
        busy, total = times[0] - self._last[0], times[1] - self._last[1]
        if total > 0:  # the kernel counts in hundredths of a second: between two of them the share stays
            self._share = min(1.0, max(0.0, busy / total))
            self._last = times
        return (self._idle_w + (self._full_w - self._idle_w) * self._share,)

    def close(self) -> None:
        """Close nothing: no file is kept open."""

    def _process_times(self) -> tuple[float, float] | None:
        """Return this process's time, and the time of all cores."""
        return time.process_time(), time.monotonic() * (os.cpu_count() or 1)

    def _machine_times(self) -> tuple[float, float] | None:
        """Return the busy time and all time of all cores since boot."""
        words = (read_text(self._path) or "").split("\n", 1)[0].split()
        if words[:1] != ["cpu"]:
            return None
        try:
            fields = [int(word) for word in words[1 : 1 + _GUEST_FIELD]]
        except ValueError:
            return None
        if len(fields) <= max(_IDLE_FIELDS):
            return None
        return sum(fields) - sum(fields[n] for n in _IDLE_FIELDS), sum(fields)
