import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.energy.integration import BRIDGE_S, between, is_usable
from edge_runtime.energy.records import Reading


def test_two_readings_make_a_trapezoid(facts):
    span = between(facts(rate_hz=10.0), Reading(1.0, (2.0,)), Reading(1.1, (4.0,)), None)
    assert span.energy_j(1.0, 1.1) == pytest.approx(0.3)
    assert span.energy_j(1.0, 1.05) == pytest.approx(0.125)
    assert not span.is_gap


def test_parts_of_a_span_add_up(facts):
    span = between(facts(), Reading(0.0, (1.0,)), Reading(0.1, (9.0,)), None)
    assert span.energy_j(0, 0.03) + span.energy_j(0.03, 0.1) == pytest.approx(span.energy_j(0, 0.1))


@pytest.mark.parametrize("after_s", [1.0, 0.5, 1.0 + BRIDGE_S + 0.1])
def test_no_time_or_too_much_between_readings_measures_nothing(facts, after_s):
    assert between(facts(), Reading(1.0, (2.0,)), Reading(after_s, (2.0,)), None) is None


def test_slow_meter_is_bridged_over_five_of_its_periods(facts):
    slow = facts(rate_hz=0.2)
    assert between(slow, Reading(0.0, (2.0,)), Reading(25.0, (2.0,)), None) is not None
    assert between(slow, Reading(0.0, (2.0,)), Reading(25.1, (2.0,)), None) is None


def test_gap_is_uncertain_by_what_was_seen(facts):
    span = between(facts(), Reading(0.0, (3.0,)), Reading(1.0, (3.0,)), (2.0, 8.0))
    assert span.is_gap
    assert span.uncertainty_w == pytest.approx(5.0)
    assert between(facts(), Reading(0.0, (3.0,)), Reading(1.0, (5.0,)), None).uncertainty_w == pytest.approx(1.0)


def test_resolution_and_gain_make_power_uncertain(facts):
    span = between(facts(resolution=0.1, gain_error=0.02), Reading(0.0, (3.0,)), Reading(0.02, (5.0,)), None)
    assert span.uncertainty_w == pytest.approx(0.05 + 0.08)


def test_counters_add_and_wrap(facts):
    two = facts(counter_ranges_j=(100.0, 50.0), rate_hz=10.0)
    span = between(two, Reading(0.0, (99.0, 10.0)), Reading(0.5, (1.0, 11.0)), None)
    assert span.energy_j(0.0, 0.5) == pytest.approx(3.0)
    assert span.start_w == pytest.approx(6.0)


def test_counter_has_no_gaps_while_it_counts(facts):
    span = between(facts(counter_ranges_j=(1e5,)), Reading(0.0, (10.0,)), Reading(9.0, (100.0,)), (1.0, 500.0))
    assert not span.is_gap
    assert span.uncertainty_w == 0


@pytest.mark.parametrize("after_j", [5e4, 90_000.0])
def test_counter_that_was_set_back_measures_nothing(facts, after_j):
    one = facts(counter_ranges_j=(262_144.0,))
    assert between(one, Reading(0.0, (100_000.0,)), Reading(0.1, (after_j,)), None) is None


def test_counter_beyond_its_range_measures_nothing(facts):
    assert between(facts(counter_ranges_j=(10.0,)), Reading(0.0, (50.0,)), Reading(0.1, (1.0,)), None) is None


def test_reading_is_usable_if_it_fits_the_meter(facts):
    assert is_usable(facts(), (1.0,))
    assert is_usable(facts(counter_ranges_j=(1.0, 2.0)), (1.0, 0.5))
    for values in [(), (1.0, 2.0), (math.nan,), (math.inf,), (1e16,)]:
        assert not is_usable(facts(), values)


@st.composite
def traces(draw):
    """A board's power: a slow wave on a level, and a step to another; its exact energy over a time."""
    level = draw(st.floats(1, 10))
    swing = draw(st.floats(0, 0.8)) * level
    period = draw(st.floats(1.0, 20.0))
    step = draw(st.floats(-0.9, 2.0)) * (level - swing)
    at = draw(st.floats(2.0, 18.0))
    seconds = 20.0

    def power_w(t):
        return level + swing * math.sin(2 * math.pi * t / period) + (step if t >= at else 0.0)

    def energy_j(t):
        wave = swing * period / (2 * math.pi) * (1 - math.cos(2 * math.pi * t / period))
        return level * t + wave + step * max(0.0, t - at)

    return power_w, energy_j, seconds


@st.composite
def times(draw, seconds, rate_hz):
    """Uneven moments: each late or early by up to a third of a period, and some stretches left out."""
    count = int(seconds * rate_hz)
    late = draw(st.randoms(use_true_random=False))
    moments = [n / rate_hz + late.uniform(-0.33, 0.33) / rate_hz * (0 < n < count) for n in range(count + 1)]
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.floats(1.0, seconds - 2.0))
        length = draw(st.floats(0.0, 0.3))
        moments = [t for t in moments if not start < t < start + length]
    return moments


@pytest.mark.slow
@given(data=st.data(), trace=traces(), rate_hz=st.sampled_from([10.0, 50.0]))
def test_watts_with_jitter_and_gaps_integrate_within_three_percent(facts, data, trace, rate_hz):
    power_w, energy_j, seconds = trace
    meter = facts(rate_hz=rate_hz)
    readings = [Reading(t, (power_w(t),)) for t in data.draw(times(seconds, rate_hz))]
    seen, total_j = (math.inf, 0.0), 0.0
    for before, after in pairwise(readings):
        seen = (min(seen[0], *before.values), max(seen[1], *before.values))
        total_j += between(meter, before, after, seen).energy_j(before.t_s, after.t_s)
    assert total_j == pytest.approx(energy_j(seconds), rel=0.03)


@pytest.mark.slow
@given(data=st.data(), trace=traces(), range_j=st.floats(40.0, 400.0), first_j=st.floats(0, 1))
def test_counters_with_jitter_gaps_and_wrap_around_integrate_within_three_percent(facts, data, trace, range_j, first_j):
    _, energy_j, seconds = trace
    meter = facts(rate_hz=10.0, counter_ranges_j=(range_j,))
    moments = data.draw(times(seconds, 10.0))
    readings = [Reading(t, ((first_j * range_j + energy_j(t)) % range_j,)) for t in moments]
    total_j = sum(
        between(meter, before, after, None).energy_j(before.t_s, after.t_s) for before, after in pairwise(readings)
    )
    assert total_j == pytest.approx(energy_j(seconds), rel=0.03)


@given(level=st.floats(0.5, 20), gain=st.floats(-1, 1), steps=st.lists(st.floats(0.001, 9), min_size=1, max_size=60))
def test_error_of_a_meter_as_bad_as_it_says_is_within_the_uncertainty(facts, level, gain, steps):
    resolution, gain_error = 0.05, 0.02
    meter = facts(resolution=resolution, gain_error=gain_error)
    shown = round(level * (1 + gain * gain_error) / resolution) * resolution
    t, total_j, bound_j = 0.0, 0.0, 0.0
    for step in steps:
        span = between(meter, Reading(t, (shown,)), Reading(t + step, (shown,)), None)
        total_j += span.energy_j(t, t + step)
        bound_j += span.uncertainty_w * step
        t += step
    # The bound is a fraction of what was shown, so of the truth it is larger by a fraction of a fraction.
    assert abs(total_j - level * t) <= bound_j * (1 + 2 * gain_error) + 1e-9
