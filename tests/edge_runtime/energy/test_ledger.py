import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.meters.meter import MeterFacts
from edge_runtime.energy.ledger import Ledger
from edge_runtime.energy.records import Baseline, DropRound, HealthReading, Mark, Reading, Start, from_line, to_line


def facts(**changes):
    usual = {
        "source": "fake",
        "covers": "all of it",
        "rate_hz": 10.0,
        "resolution": 0.0,
        "gain_error": 0.0,
        "estimated": False,
        "counter_ranges_j": None,
    }
    return MeterFacts(**(usual | changes))


def fold(*records):
    ledger = Ledger()
    for record in records:
        ledger.apply(record)
    return ledger


def steady(start_s, end_s, power_w=5.0):
    return [Reading(start_s + n / 10, (power_w,)) for n in range(round((end_s - start_s) * 10) + 1)]


def test_energy_is_divided_among_phases_by_time():
    ledger = fold(
        Start(0.0, facts()),
        Reading(0.0, (4.0,)),
        Mark(0.0, 1, "a", "download"),
        Mark(0.05, 1, "a", "train"),
        Reading(0.1, (8.0,)),
    )
    report = ledger.report(1, "a")
    assert report.phases["download"].energy_j == pytest.approx(0.05 * 5.0)
    assert report.phases["train"].energy_j == pytest.approx(0.05 * 7.0)
    assert report.energy_j == pytest.approx(0.6)
    assert ledger.totals(1, "a")["train"].high_w == pytest.approx(8.0)
    assert ledger.totals(1, "a")["download"].low_w == pytest.approx(4.0)


def test_rounds_and_groups_have_their_own():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 1.0),
        Mark(1.0, 1, "b", "train"),
        *steady(1.0, 3.0),
        Mark(3.0, 2, "a", "train"),
        *steady(3.0, 4.0, 7.0),
    )
    assert ledger.report(1, "a").energy_j == pytest.approx(5.0)
    assert ledger.report(1, "b").energy_j == pytest.approx(10.0)
    assert ledger.report(2, "a").energy_j == pytest.approx(7.0)
    assert ledger.report(3, "a").energy_j is None
    assert ledger.report(3, "a").phases == {}


def test_time_outside_rounds_counts_for_none():
    ledger = fold(Start(0.0, facts()), Mark(0.0, None, "", "idle"), *steady(0.0, 1.0))
    assert ledger.report(0, "").seconds == 0


def test_records_before_a_start_count_for_nothing():
    ledger = fold(Reading(0.0, (1.0,)), Mark(0.5, 1, "a", "train"), Reading(1.0, (1.0,)))
    assert ledger.report(1, "a").energy_j is None
    assert ledger.snapshot() == []


def test_without_a_meter_time_is_kept_and_energy_is_none():
    ledger = fold(Start(0.0, None), Mark(0.0, 1, "a", "train"), Mark(2.0, 1, "a", "upload"))
    report = ledger.report(1, "a")
    assert report.seconds == pytest.approx(2.0)
    assert (report.energy_j, report.source, report.covers, report.sample_rate_hz) == (None, None, None, None)


def test_unusable_readings_are_passed_over():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        Reading(0.0, (5.0,)),
        Reading(0.1, (float("inf"),)),
        Reading(0.1, (5.0, 5.0)),
        Reading(0.2, (5.0,)),
    )
    assert ledger.report(1, "a").energy_j == pytest.approx(1.0)
    assert ledger.report(1, "a").sample_rate_hz == pytest.approx(5.0)


def test_phase_that_was_hardly_measured_has_no_energy():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 1.0),
        Reading(100.0, (5.0,)),
    )
    report = ledger.report(1, "a")
    assert report.seconds == pytest.approx(100.0)
    assert ledger.totals(1, "a")["train"].measured_s == pytest.approx(1.0)
    assert report.energy_j is None


def test_moment_that_was_not_measured_does_not_cost_the_round_its_energy():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 1.0),
        Mark(1.001, 1, "a", "upload"),
        Mark(1.002, 1, "a", "idle"),
    )
    report = ledger.report(1, "a")
    assert report.phases["upload"].energy_j is None
    assert report.energy_j == pytest.approx(5.01)


def test_little_that_is_missing_counts_at_the_mean_and_is_uncertain():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 95.0),
        Reading(95.1 + 10.4, (5.0,)),
        *steady(105.5, 205.0),
    )
    report = ledger.report(1, "a")
    assert report.energy_j == pytest.approx(205 * 5.0)
    assert report.uncertainty_j == pytest.approx(10.5 * 5.0)


def test_gap_is_bridged_and_said():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 2.0),
        *steady(4.0, 6.0, 7.0),
    )
    report = ledger.report(1, "a")
    assert report.gap_s == pytest.approx(2.0)
    assert report.energy_j == pytest.approx(10 + 12 + 14)
    assert report.uncertainty_j == pytest.approx(2.0)


def test_process_that_starts_again_goes_on_with_the_round():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 2.0),
        Start(50.0, facts()),
        *steady(50.0, 51.0),
        Mark(51.0, 1, "a", "train"),
        *steady(51.0, 52.0),
    )
    report = ledger.report(1, "a")
    assert report.energy_j == pytest.approx(15.0)
    assert report.seconds == pytest.approx(3.0)


def test_two_sources_in_a_round_are_both_named():
    ledger = fold(
        Start(0.0, facts()),
        Baseline("fake", 2.0),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 1.0),
        Start(5.0, facts(source="model", estimated=True)),
        Mark(5.0, 1, "a", "train"),
        *steady(5.0, 6.0),
    )
    report = ledger.report(1, "a")
    assert report.source == "fake+model"
    assert report.estimated
    assert report.idle_w is None


def test_baseline_is_reported_beside_the_total():
    ledger = fold(Start(0.0, facts()), Baseline("fake", 2.0), Mark(0.0, 1, "a", "train"), *steady(0.0, 1.0))
    report = ledger.report(1, "a")
    assert (report.energy_j, report.idle_w, report.above_idle_j) == (
        pytest.approx(5.0),
        2.0,
        pytest.approx(3.0),
    )


def test_counters_tally_their_mean_power():
    ledger = fold(
        Start(0.0, facts(counter_ranges_j=(10.0,))),
        Mark(0.0, 1, "a", "train"),
        Reading(0.0, (9.9,)),
        Reading(0.1, (0.4,)),
        Reading(0.2, (0.6,)),
    )
    phase = ledger.totals(1, "a")["train"]
    assert phase.energy_j == pytest.approx(0.7)
    assert (phase.low_w, phase.high_w) == (pytest.approx(2.0), pytest.approx(5.0))


def test_clock_that_stands_still_or_goes_back_adds_no_time():
    ledger = fold(Start(5.0, facts()), Mark(5.0, 1, "a", "train"), Reading(4.0, (5.0,)), Reading(5.0, (5.0,)))
    assert ledger.report(1, "a").seconds == 0


def test_dropped_round_is_gone_and_others_stay():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        *steady(0.0, 1.0),
        HealthReading(1.0, 40.0, None, None, None),
        Mark(1.05, 2, "a", "train"),
        Mark(1.08, None, "", "idle"),
        DropRound(1, "a"),
        Reading(1.1, (5.0,)),
        DropRound(9, "z"),
    )
    assert ledger.report(1, "a").phases == {}
    assert ledger.report(2, "a").energy_j == pytest.approx(0.15)
    assert ledger.report(1, "a").temperature_max_c is None


def test_health_is_kept_with_its_round():
    ledger = fold(
        Start(0.0, None),
        HealthReading(0.0, 99.0, 1.0, ("throttled",), ()),
        Mark(0.0, 1, "a", "idle"),
        HealthReading(0.0, 40.0, 6e8, (), ("under_voltage",)),
        Mark(1.0, 1, "a", "train"),
        HealthReading(1.0, 80.0, 1.5e9, ("throttled",), ("throttled", "under_voltage")),
        HealthReading(2.0, 70.0, 1.2e9, None, None),
        HealthReading(3.0, None, None, (), ("throttled", "under_voltage", "frequency_capped")),
    )
    report = ledger.report(1, "a")
    assert report.temperature_max_c == 80.0
    assert report.cpu_min_hz == 1.2e9
    assert report.throttled == ("frequency_capped", "throttled")


def test_health_that_nobody_says_is_none():
    ledger = fold(Start(0.0, None), Mark(0.0, 1, "a", "train"), HealthReading(0.0, None, None, None, None))
    report = ledger.report(1, "a")
    assert (report.temperature_max_c, report.cpu_min_hz, report.throttled) == (None, None, None)


def test_what_held_the_board_back_before_and_does_now_is_the_round_s_too():
    now = ("under_voltage",)
    ledger = fold(Start(0.0, None), Mark(0.0, 1, "a", "train"), HealthReading(0.0, None, None, now, now))
    assert ledger.report(1, "a").throttled == now


POWERS = st.floats(0, 20)
EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 0.4),
        st.one_of(
            st.tuples(st.just("s"), POWERS),
            st.tuples(st.just("s"), POWERS),
            st.tuples(st.just("m"), st.sampled_from(["train", "probe", "idle"]), st.sampled_from([None, 1, 2])),
            st.tuples(st.just("h"), st.floats(20, 90)),
            st.tuples(st.just("f"), st.sampled_from([1, 2])),
        ),
    ),
    max_size=30,
)


def records_of(events, t_s):
    for step_s, event in events:
        t_s += step_s
        if event[0] == "s":
            yield Reading(t_s, (event[1],))
        elif event[0] == "m":
            yield Mark(t_s, event[2], "a", event[1])
        elif event[0] == "h":
            yield HealthReading(t_s, event[1], None, (), ())
        else:
            yield DropRound(event[1], "a")


@pytest.mark.slow
@given(before=EVENTS, after=EVENTS)
def test_snapshot_stands_for_all_before_it(before, after):
    """Taken right after a reading, as the account does."""
    whole = fold(Start(0.0, facts()), Baseline("fake", 1.0), *records_of(before, 0.0))
    end_s = sum(step for step, _ in before)
    whole.apply(Reading(end_s, (3.0,)))
    lines = [to_line(record)[:-1] for record in whole.snapshot()]
    again = fold(*map(from_line, lines))
    for record in records_of(after, end_s):
        whole.apply(record)
        again.apply(record)
    for round_ in (1, 2):
        assert again.report(round_, "a") == whole.report(round_, "a")


@pytest.mark.slow
@given(EVENTS)
def test_all_energy_of_a_steady_board_is_somebody_s(events):
    """Whatever the order of readings and phases, no time is counted twice and none is lost."""
    records = [r for r in records_of(events, 0.0) if not isinstance(r, DropRound)]
    records = [Reading(r.t_s, (5.0,)) if isinstance(r, Reading) else r for r in records]
    end_s = records[-1].t_s if records else 0.0
    ledger = fold(
        Start(0.0, facts()), Reading(0.0, (5.0,)), Mark(0.0, 1, "a", "train"), *records, Reading(end_s, (5.0,))
    )
    inside_s, before_s, round_ = 0.0, 0.0, 1
    for record in records:
        inside_s += record.t_s - before_s if round_ is not None else 0.0
        before_s, round_ = record.t_s, record.round if isinstance(record, Mark) else round_
    found = [ledger.report(round_, "a") for round_ in (1, 2)]
    assert sum(report.seconds for report in found) == pytest.approx(inside_s)
    assert sum(report.energy_j or 0.0 for report in found) == pytest.approx(5.0 * inside_s, abs=1e-9)


def test_rounds_are_those_that_something_is_known_of():
    ledger = fold(
        Start(0.0, facts()),
        Mark(0.0, 1, "a", "train"),
        Reading(0.1, (4.0,)),
        Mark(0.2, 2, "b", "idle"),
        HealthReading(0.2, 50.0, None, None, None),
    )
    assert ledger.rounds() == {(1, "a"), (2, "b")}
    ledger.apply(DropRound(1, "a"))
    assert ledger.rounds() == {(2, "b")}
