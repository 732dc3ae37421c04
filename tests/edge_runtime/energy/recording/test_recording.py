import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.energy.recording.recording import PowerConverter, PowerReading, mean_w, segments


def rows(*triples):
    return [PowerReading(seconds=s, watts=w, mark=m) for s, w, m in triples]


def test_power_of_watts_is_their_sum():
    assert PowerConverter(None)(0.0, (1.5, 2.0)) == 3.5


def test_power_of_counters_is_the_mean_since_the_reading_before():
    power = PowerConverter((100.0, 100.0))
    assert power(0.0, (10.0, 99.0)) is None
    assert power(2.0, (14.0, 1.0)) == pytest.approx((4 + 2) / 2)  # the second one has started again
    assert power(2.0, (20.0, 2.0)) is None  # no time has passed


def test_segments_have_energy_and_what_is_above_idle():
    found = segments(rows((0, 2, "idle"), (1, 2, "idle"), (2, 4, "work"), (4, 6, "work"), (5, 6, "work")))
    idle, work = found
    assert (idle.seconds, idle.energy_j, idle.mean_w) == (2, 5.0, 2.5)  # the step up is in the interval that began idle
    assert (work.seconds, work.energy_j, work.min_w, work.max_w) == (3, 16.0, 4, 6)
    assert work.above_idle_j == pytest.approx(16.0 - 2.5 * 3)


def test_segments_without_an_idle_time_have_no_baseline():
    assert segments(rows((0, 2, "work"), (1, 2, "work")))[0].above_idle_j is None


def test_segments_long_gaps_are_not_measured():
    found = segments(rows((0, 2, "work"), (1, 2, "work"), (60, 4, "work"), (61, 4, "work")))[0]
    assert (found.seconds, found.measured_s, found.energy_j) == (61, 2, 6.0)
    assert mean_w(rows((0, 2, "a"), (60, 4, "a"))) is None


@pytest.mark.slow
@given(
    powers=st.lists(st.floats(0, 100), min_size=2, max_size=30),
    cuts=st.lists(st.sampled_from(["idle", "a", "b"]), min_size=30, max_size=30),
)
def test_segments_add_up_to_the_whole(powers, cuts):
    whole = [PowerReading(seconds=float(n), watts=w, mark=cuts[n]) for n, w in enumerate(powers)]
    found = segments(whole)
    assert sum(each.energy_j for each in found) == pytest.approx(mean_w(whole) * (len(powers) - 1))
    assert sum(each.seconds for each in found) == len(powers) - 1
