import pytest

from devices.meters.meter import MeterFacts
from edge_runtime.energy.integration import Reading, between, is_usable
from edge_runtime.energy.recording.calibrated import CalibratedMeter
from edge_runtime.energy.recording.calibration import Calibration, CalibrationInvalid


class Meter:
    """Gives what it was told to, one after the other."""

    def __init__(self, *values, ranges=None):
        self.facts = MeterFacts(
            source="fake", covers="all", rate_hz=10.0, resolution=0.5, gain_error=0.02, counter_ranges_j=ranges
        )
        self.values = list(values)
        self.closed = False

    def read(self):
        return self.values.pop(0)

    def close(self):
        self.closed = True


def calibration(gain=1.5, offset_w=0.25, source="fake"):
    return Calibration(source=source, gain=gain, offset_w=offset_w, residual_w=0.0)


def test_calibrated_watts_are_true():
    meter = CalibratedMeter(Meter((2.0,), None, (0.0,)), calibration())
    assert meter.read() == (3.25,)
    assert meter.read() is None
    assert meter.read() == (0.25,)
    assert (meter.facts.source, meter.facts.resolution, meter.facts.gain_error) == ("fake (calibrated)", 0.75, 0.02)


def test_calibrated_watts_are_never_negative():
    assert CalibratedMeter(Meter((0.1,)), calibration(offset_w=-1.0)).read() == (0.0,)


@pytest.mark.parametrize("offset_w", [0.25, -0.5])
def test_calibrated_counters_count_true_joules_over_a_wrap(offset_w):
    now = iter([100.0, 100.0, 102.0, 104.0])
    readings = [(98.0, 10.0), (4.0, 11.0), (14.0, 12.0)]  # 6 + 1 and 10 + 1 joules, in two seconds each
    meter = CalibratedMeter(Meter(*readings, ranges=(100.0, 100.0)), calibration(offset_w=offset_w), lambda: next(now))
    assert meter.facts.counter_ranges_j == (150.0, 150.0)
    found = [Reading(2.0 * n, meter.read()) for n in range(3)]
    assert all(is_usable(meter.facts, reading.values) for reading in found)
    for (before, after), joules in zip([found[:2], found[1:]], (7.0, 11.0), strict=True):
        assert between(meter.facts, before, after, None).start_w == pytest.approx(1.5 * joules / 2 + offset_w)


def test_calibrated_by_another_meter_s_calibration_is_refused():
    with pytest.raises(CalibrationInvalid, match="the calibration is for pmic, and this meter is fake"):
        CalibratedMeter(Meter(), calibration(source="pmic"))


def test_calibrated_closes_the_meter():
    meter = Meter()
    CalibratedMeter(meter, calibration()).close()
    assert meter.closed
