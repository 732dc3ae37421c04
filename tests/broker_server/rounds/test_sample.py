import msgspec
import pytest
import samples

from broker_server.rounds.actions import Opened
from broker_server.rounds.answer_times import AnswerTimes
from broker_server.rounds.presence import Presence
from broker_server.rounds.round_state import OpenRound
from broker_server.rounds.rules import Rules
from broker_server.rounds.sample import Draws, able, sample
from broker_server.strategies.planner import Round

HELLOS = {
    "both": samples.hello(tasks=("a", "b")),
    "other": samples.hello(tasks=("c",)),
    "requiring": msgspec.structs.replace(samples.hello(tasks=("a",)), ort_training="require"),
}


def opened(*, work="train", tasks=("a", "b"), is_portable=False, index=0, members=()):
    planned = Round(
        number=0,
        phase="merge",
        work=work,
        group="+".join(tasks),
        tasks=tasks,
        index=index,
        rounds=1,
        probe=False,
        data_split=None if work == "train" else "test",
    )
    plan = samples.plan(0, work=work, tasks=tasks)
    return OpenRound(round=planned, plan=plan, members=dict.fromkeys(members, "asked"), is_portable=is_portable)


@pytest.mark.parametrize(
    ("about", "names"),
    [
        ({}, ["both", "requiring"]),
        ({"is_portable": True}, ["both"]),
        ({"tasks": ("z",)}, []),
        ({"tasks": ("z",), "work": "evaluate"}, ["both", "other", "requiring"]),
        ({"work": "evaluate"}, ["both", "requiring"]),
    ],
)
def test_able_are_those_with_labels_of_a_task_or_all_to_measure_what_nobody_has_labels_of(about, names):
    assert able(opened(**about), HELLOS) == names


def test_a_sample_is_the_seed_s_the_round_s_and_that_of_what_was_drawn_before():
    names = list("abcdefghijklmnop")
    drawn = sample(7, opened(), names, 5)
    assert drawn == sample(7, opened(), names, 5) == sorted(drawn)
    assert len(set(drawn)) == 5
    for seed, current in ((8, opened()), (7, opened(index=1)), (7, opened(members="x"))):
        assert sample(seed, current, names, 5) != drawn


def test_draws_take_in_who_is_free_and_journal_it():
    presence, times = Presence({}), AnswerTimes()
    for name in ("a", "b", "c"):
        presence.on_hello(name, samples.hello(), 0.0)
    current = opened(tasks=("a",))
    draws = Draws(seed=0, rules=Rules(clients_per_round=2), presence=presence, answer_times=times)
    drawn = draws.free(current)
    assert len(drawn) == 2
    journalled = draws.take_in(current, drawn, 1.0)
    assert journalled == Opened(round=current.round, members=tuple(drawn), quorum=0)
    assert draws.free(current) == []
    assert draws.others(current, 5) == sorted({"a", "b", "c"} - set(drawn))


@pytest.mark.parametrize(("number", "count"), [(-1, 0), (0, 0), (9, 3)])
def test_a_sample_has_no_more_than_there_are(number, count):
    assert len(sample(0, opened(), ["a", "b", "c"], number)) == count
