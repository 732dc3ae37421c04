import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.blob import CHUNK_BYTES, MESSAGE_BYTES
from edge_runtime.wire.pace import (
    FIRST_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    MESSAGE_S,
    MIN_WINDOW_BYTES,
    WINDOW_S,
    Handover,
    Pace,
    halved,
)


def test_pace_is_unknown_and_careful_at_first():
    pace = Pace()
    assert pace.bytes_per_s is None
    assert pace.window_bytes == FIRST_WINDOW_BYTES
    assert pace.message_bytes < FIRST_WINDOW_BYTES
    assert pace.window_s == 0.0


@pytest.mark.parametrize("rate", [500.0, 5e3, 2e4, 1e5, 1e6])
@pytest.mark.parametrize("before", [None, 50.0, 1e8])
def test_pace_finds_the_rate_of_a_line_whatever_it_was_before(rate, before):
    pace, now_s = Pace(before), 100.0
    pace.begin(now_s)
    for burst in (1, 3, 2) * 10:  # the line's buffers give several messages at once
        now_s += burst * 20_000 / rate
        for _ in range(burst):
            pace.on_bytes(20_000, now_s)
    assert pace.bytes_per_s == pytest.approx(rate, rel=0.1)
    assert pace.window_bytes == pytest.approx(min(MAX_WINDOW_BYTES, max(MIN_WINDOW_BYTES, WINDOW_S * rate)), rel=0.1)


def test_pace_does_not_count_the_time_in_which_nothing_was_under_way():
    pace, now_s = Pace(), 0.0
    for _ in range(20):
        pace.begin(now_s)
        pace.begin(now_s + 0.5)  # it has begun already
        pace.on_bytes(1000, now_s + 1.0)
        pace.pause()
        pace.on_bytes(10**9, now_s + 2.0)  # nobody waited for it
        now_s += 3600.0
    assert pace.bytes_per_s == pytest.approx(1000.0)


def test_pace_in_one_tick_of_the_clock_is_not_infinite():
    pace = Pace()
    pace.begin(5.0)
    pace.on_bytes(1000, 5.0)
    assert pace.bytes_per_s == 1e6


def test_pace_remembers_and_learns_at_once():
    pace = Pace(1e6)
    assert pace.window_bytes == MAX_WINDOW_BYTES
    pace.begin(0.0)
    pace.on_bytes(50_000, 0.9)
    assert pace.bytes_per_s == 1e6
    pace.on_bytes(50_000, 10.0)
    assert pace.bytes_per_s < 50_000


@given(rate=st.floats(1.0, 1e9), most=st.sampled_from([CHUNK_BYTES, MESSAGE_BYTES]))
def test_messages_are_short_on_a_slow_line_and_never_over_the_limit(rate, most):
    pace = Pace(rate)
    pace.most_bytes = most
    assert pace.message_bytes <= most
    assert pace.message_bytes <= max(2 * CHUNK_BYTES, MESSAGE_S * rate)
    assert pace.message_bytes <= pace.window_bytes


@pytest.mark.parametrize(("too_large", "then"), [(262_144, 131_072), (140_000, 69_632), (9000, 4096), (100, 4096)])
def test_what_is_too_large_is_halved_to_whole_chunks(too_large, then):
    assert halved(too_large) == then


class Line:
    """A link of which the test says what it has taken and what the broker has."""

    bytes_out = bytes_acknowledged = 0


def test_handover_leaves_room_as_fast_as_the_broker_acknowledges():
    line, pace = Line(), Pace()
    handover = Handover(line, pace)
    handover.measure(0.0, waits=True)
    line.bytes_out = pace.window_bytes
    assert not handover.has_room
    line.bytes_acknowledged = pace.window_bytes
    handover.measure(2.0, waits=False)
    assert handover.has_room
    assert pace.bytes_per_s == FIRST_WINDOW_BYTES / 2.0
    handover.measure(1000.0, waits=False)
    handover.measure(1000.0, waits=True)
    line.bytes_out += 1000
    line.bytes_acknowledged += 1000
    handover.measure(1000.1, waits=False)  # the pause before did not count
    assert pace.bytes_per_s > FIRST_WINDOW_BYTES / 2.1
