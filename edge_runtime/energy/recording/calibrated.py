"""A meter whose readings a calibration corrects: for recordings, and for the energy that the agent reports.

A meter of watts reads gain · w + offset, and never less than nothing. Counters count gain times as fast, and the first
of them the offset's joules besides, by the clock; only the differences between their readings count.
"""

# coverage: every branch

import time
from collections.abc import Callable

from msgspec.structs import replace

from devices.meters.meter import Meter, MeterFacts
from edge_runtime.energy.recording.calibration import Calibration, CalibrationInvalid


class CalibratedMeter:
    """The meter with corrected readings. Raises CalibrationInvalid for a calibration of another source."""

    def __init__(self, meter: Meter, calibration: Calibration, clock: Callable[[], float] = time.monotonic) -> None:
        facts = meter.facts
        if calibration.source != facts.source:
            raise CalibrationInvalid(f"the calibration is for {calibration.source}, and this meter is {facts.source}")
        self._meter, self._calibration, self._clock = meter, calibration, clock
        self._began_s = clock()
        gain = calibration.gain
        ranges_j = facts.counter_ranges_j
        self._facts = replace(
            facts,
            source=f"{facts.source} (calibrated)",
            resolution=gain * facts.resolution,
            counter_ranges_j=None if ranges_j is None else tuple(gain * each for each in ranges_j),
        )

    @property
    def facts(self) -> MeterFacts:
        """The meter's own, in true watts; its gain error stays: two loads do not show how much of it is left."""
        return self._facts

    def read(self) -> tuple[float, ...] | None:
        """Return true watts, or the counters in true joules; None if the meter cannot be read now."""
        values = self._meter.read()
        if values is None:
            return None
        calibration = self._calibration
        if self._facts.counter_ranges_j is None:
            return (max(0.0, calibration.true_w(sum(values))),)
        first, *others = (calibration.gain * value for value in values)
        return (first + calibration.offset_w * (self._clock() - self._began_s), *others)

    def close(self) -> None:
        """Close the meter's files."""
        self._meter.close()
