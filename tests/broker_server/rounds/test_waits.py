import itertools

import pytest
import samples

from broker_server.rounds.presence import Presence
from broker_server.rounds.round_state import OpenRound
from broker_server.rounds.waits import MAX_SAY_S, SAY_AFTER_S, Waits, awaited
from broker_server.strategies.planner import Round
from edge_runtime.wire.messages import Progress

GRACE_S = 60.0


def opened(**members):
    planned = Round(
        number=3, phase="merge", work="train", group="a", tasks=("a",), index=0, rounds=1, probe=False, data_split=None
    )
    results = {name: samples.update(3) for name, state in members.items() if state == "counted"}
    return OpenRound(round=planned, plan=samples.plan(3), members=members, results=results, since_s=100.0)


@pytest.fixture
def presence():
    presence = Presence({})
    for name in "abc":
        presence.on_hello(name, samples.hello(), 100.0)
    return presence


@pytest.fixture
def say(presence):
    waits = Waits()
    return lambda current, now_s: waits.said(current, presence, needed=2, grace_s=GRACE_S, now_s=now_s)


def test_a_member_that_is_away_is_awaited_for_the_grace_period(presence):
    current = opened(a="asked", b="fetching", c="counted", never="asked")
    presence.on_status("b", online=False, now_s=110.0)
    assert awaited(current, presence, GRACE_S, 159.9) == ["a", "b", "never"]
    assert awaited(current, presence, GRACE_S, 160.0) == ["a", "b"]
    assert awaited(current, presence, GRACE_S, 170.0) == ["a"]
    presence.on_heard("b", 171.0)
    assert awaited(current, presence, GRACE_S, 400.0) == ["a", "b"]


def test_a_round_that_has_too_few_devices_says_so(say, presence):
    assert say(opened(), 100.0) is None
    assert say(opened(), 100.0 + SAY_AFTER_S) == (
        "round 3 has waited 5 s for devices that can take part: 3 online, it needs 2"
    )
    presence.on_status("c", online=False, now_s=106.0)
    assert say(opened(), 107.0) is None  # another wait


def test_members_that_are_all_at_work_are_no_wait(say):
    current = opened(a="asked", b="asked", c="asked")
    assert all(say(current, 100.0 + seconds) is None for seconds in range(0, 1000, 10))
    assert say(None, 2000.0) is None


def test_the_last_members_and_what_they_do_are_named(say, presence):
    presence.devices["b"].progress = Progress(round=3, stage="train", done=2, total=9)
    assert say(opened(a="counted", b="asked", c="fetching"), 100.0) is None
    assert say(opened(a="asked", b="asked", c="fetching"), 104.0) is None
    current = opened(a="counted", b="asked", c="counted")
    assert say(current, 110.0) is None
    assert say(current, 115.0) == "round 3 has waited 5 s for b (train, 2 of 9)"


def test_a_member_that_is_away_is_named_with_the_time_it_has(say, presence):
    current = opened(a="asked", b="asked", c="asked")
    presence.on_status("c", online=False, now_s=110.0)
    assert say(current, 111.0) is None
    assert say(current, 117.0) == "round 3 has waited 6 s for c (away, it goes on without it in 53 s)"
    assert say(current, 175.0) is None  # it is waited for no longer


def test_a_member_that_is_away_is_named_for_as_long_as_there_is_no_quorum(say, presence):
    current = opened(a="counted", b="asked", c="refused")
    current.quorum = 2
    presence.on_status("b", online=False, now_s=110.0)
    assert say(current, 111.0) is None
    assert say(current, 116.0) == "round 3 has waited 5 s for b (away)"
    assert say(current, 111.0 + 2 * GRACE_S) == "round 3 has waited 120 s for b (away)"
    current.quorum = 1
    assert say(current, 112.0 + 2 * GRACE_S) is None


def test_a_long_wait_is_said_ever_more_rarely(say):
    said = [second for second in range(4000) if say(opened(), 100.0 + second)]
    assert said[:5] == [5, 10, 20, 40, 80]
    assert max(after - before for before, after in itertools.pairwise(said)) == MAX_SAY_S


def test_of_many_members_some_are_named(say, presence):
    for name in "defgh":
        presence.on_hello(name, samples.hello(), 100.0)
    current = opened(**dict.fromkeys("abcdefg", "asked"), **{f"x{number}": "counted" for number in range(7)})
    say(current, 100.0)
    assert say(current, 106.0).endswith("e (at work) and 2 more")
