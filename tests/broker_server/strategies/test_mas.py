from dataclasses import replace

import msgspec
import numpy as np
import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.choice import choice_of
from broker_server.strategies.mas import Mas
from broker_server.strategies.planner import Phase, learning_rate

TASKS = ("a", "b", "c")


def mas(groups=2, mode="exactly", method="best", **changes):
    choice = choice_of(method, groups, mode, seed=0, head_cost=0.25, shortlist=2)
    settings = {"merged_rounds": 4, "split_rounds": 2, "probe_rounds": 1, "groups": groups, "mode": mode}
    return Mas(TASKS, **(settings | {"choice": choice} | changes))


def test_mas_phases_in_order(measured, walk):
    done = walk(mas(), measured())
    assert [(p.name, p.work, p.start, p.steps) for p in done] == [
        ("before", "evaluate", None, 1),
        ("merge", "train", None, 4),
        ("merged", "evaluate", "merge", 1),
        ("split", "train", "merge", 4),
        ("end", "evaluate", "split", 2),
    ]
    assert done[3].groups == done[4].groups == (("a", "b"), ("c",))
    assert done[3].split.mode == "exactly"


@pytest.mark.parametrize("mode", ["exactly", "at_most", "overlap"])
def test_mas_with_one_group_ends_with_the_merged_model(mode, measured, walk):
    done = walk(mas(groups=1, mode=mode), measured(counts=0))
    assert [p.name for p in done] == ["before", "merge", "merged"]


def test_mas_without_affinities_cannot_split(measured, walk):
    with pytest.raises(SplitImpossible, match="no device measured"):
        walk(mas(), measured(counts=0))


def test_mas_more_groups_than_tasks(measured, walk):
    with pytest.raises(SplitImpossible):
        mas(groups=4)
    assert len(walk(mas(groups=4, mode="at_most"), measured())[3].groups) <= 3


def test_mas_probes_in_a_window_of_rounds(measured, walk):
    merge = walk(mas(probe_from=1, probe_rounds=2), measured())[1]
    assert [merge.round_at(step, 0).probe for step in range(4)] == [False, True, True, False]


def test_mas_phases_survive_json(measured, walk):
    for phase in walk(mas(), measured()):
        assert msgspec.json.decode(msgspec.json.encode(phase), type=Phase) == phase


def test_mas_from_scratch_trains_the_groups_for_all_rounds(measured, walk):
    split = walk(mas(start="scratch"), measured())[3]
    assert (split.start, split.rounds, split.rounds_before) == (None, 6, 0)


def test_mas_that_continues_the_schedule_counts_the_merged_rounds(measured, walk):
    _, merge, _, split, _ = walk(mas(schedule="continue"), measured(rounds={"merge": 4}))
    assert (split.start, split.rounds, split.rounds_before) == ("merge", 2, 4)
    rates = [learning_rate(0.1, r, merge) for r in range(4)] + [learning_rate(0.1, r, split) for r in range(2)]
    assert rates == [0.1 * (1 - r / 6) ** 0.9 for r in range(6)]


def test_mas_splits_when_it_is_sure_and_gives_the_rest_to_the_groups(measured, ledger):
    strategy = mas(confidence=0.9, confidence_rounds=2)
    merge = strategy.next([strategy.next([], measured())], measured())
    assert merge.open_ended
    assert not strategy.may_end(merge, measured())
    assert not strategy.may_end(merge, measured(ledger=ledger(1)))
    assert strategy.may_end(merge, measured(ledger=ledger(2)))
    before = Phase(name="before", work="evaluate", groups=(TASKS,), start=None)
    merged = Phase(name="merged", work="evaluate", groups=(TASKS,), start="merge")
    split = strategy.next([before, merge, merged], measured(rounds={"merge": 2}))
    assert split.rounds == 4
    assert not strategy.may_end(split, measured(ledger=ledger(2)))


def test_finder_makes_other_groups_by_other_choices(measured, walk):
    best = walk(mas(), measured())[3].split
    worst = walk(mas(method="worst"), measured())[3].split
    assert worst.score < best.score
    assert walk(mas(method="hierarchical"), measured())[3].groups == best.groups
    assert walk(mas(method="hierarchical", mode="at_most"), measured())[3].groups == best.groups
    drawn = walk(mas(method="random"), measured())[3].split
    assert worst.score <= drawn.score <= best.score
    assert len(drawn.groups) == 2


def test_finder_takes_the_number_of_groups_that_is_worth_it(measured, walk):
    assert walk(mas(method="training_cost", groups=3), measured())[3].groups == (("a", "b"), ("c",))
    alike = measured(values=np.ones((3, 3)))
    assert walk(mas(method="training_cost", groups=3), alike)[3].groups == (TASKS,)


TRIED = {
    ("a",): {"a": 1.0},
    ("b",): {"b": 1.0},
    ("c",): {"c": 1.0},
    ("a", "b"): {"a": 2.0, "b": 2.0},
    ("a", "c"): {"a": 0.5, "c": 0.5},
    ("b", "c"): {"b": 2.0, "c": 2.0},
    ("a", "b", "c"): {"a": 3.0, "b": 3.0, "c": 3.0},
}
WEIGHED = {("a", "b", "c"): {"a": 1.0, "b": 1.0, "c": 1.0}}


def test_mas_tries_singles_pairs_and_all_tasks_and_splits_by_their_losses(measured, walk):
    done = walk(mas(method="trials", probe_rounds=0), measured(counts=0, losses={"tried": TRIED}))
    assert [phase.name for phase in done] == ["before", "merge", "merged", "trials", "tried", "split", "end"]
    trials, tried, split = done[3:6]
    assert trials.groups == tried.groups == tuple(TRIED)
    assert (trials.work, trials.start, trials.rounds) == ("train", "merge", 1)
    assert (tried.work, tried.start, tried.data_split) == ("evaluate", "trials", "val")
    assert (split.groups, split.start, split.rounds) == ((("a", "c"), ("b",)), "merge", 2)
    assert split.split.score == pytest.approx(-2.0 / 3)


@pytest.mark.parametrize(
    ("schedule", "rounds", "rates"),
    [
        ("restart", 1, [1 - 1 / 2]),
        ("continue", 1, [1 - 5 / 6]),
        ("restart", 2, [1, 1 / 2]),
        ("restart", 3, [1, 2 / 3, 1 / 3]),
    ],
)
def test_mas_tries_at_the_learning_rate_of_the_middle_of_the_split(measured, walk, schedule, rounds, rates):
    of = measured(counts=0, losses={"tried": TRIED}, rounds={"merge": 4})
    trials = walk(mas(method="trials", schedule=schedule, trial_rounds=rounds), of)[3]
    assert [learning_rate(1.0, r, trials) for r in range(rounds)] == pytest.approx([rate**0.9 for rate in rates])


def test_mas_with_at_most_some_groups_does_not_split_where_trials_are_against_it(measured, walk):
    together = {**TRIED, ("a", "b", "c"): {"a": 0.1, "b": 0.1, "c": 0.1}}
    strategy = mas(method="trials", mode="at_most", groups=3)
    assert walk(strategy, measured(losses={"tried": together}))[5].groups == (TASKS,)
    assert walk(strategy, measured(losses={"tried": TRIED}))[5].groups == (("a", "c"), ("b",))
    apart = {group: losses for group, losses in together.items() if group != TASKS}
    assert walk(strategy, measured(losses={"tried": apart}))[5].groups == (("a", "c"), ("b",))


def test_mas_tries_what_affinities_prefer_and_splits_by_their_losses(measured, walk):
    strategy = mas(method="hybrid")
    before, merge, merged, weighed, trials = walk(strategy, measured(losses={"weighed": WEIGHED, "tried": TRIED}))[:5]
    assert (weighed.work, weighed.groups, weighed.data_split) == ("evaluate", (TASKS,), "val")
    preferred, second, every = trials.groups[:2], trials.groups[2:4], trials.groups[4:]
    assert (preferred, every) == ((("a", "b"), ("c",)), (TASKS,))
    for better, worse in ((preferred, second), (second, preferred)):
        losses = {group: dict.fromkeys(group, 1.0 if group in better else 2.0) for group in (*better, *worse, *every)}
        of = measured(losses={"weighed": WEIGHED, "tried": losses})
        tried = strategy.next([before, merge, merged, weighed, trials], of)
        split = strategy.next([before, merge, merged, weighed, trials, tried], of)
        assert (tried.name, tried.groups, split.name, set(split.groups)) == (
            "tried",
            trials.groups,
            "split",
            set(better),
        )


def test_mas_weighs_affinities_by_validation_losses(measured, walk):
    done = walk(mas(method="weighted"), measured(losses={"weighed": WEIGHED}))
    assert [phase.name for phase in done] == ["before", "merge", "merged", "weighed", "split", "end"]
    assert done[4].groups == (("a", "b"), ("c",))
    assert len(done[4].split.group_scores) == 8


@pytest.mark.parametrize(
    ("method", "losses", "says"),
    [
        ("weighted", {}, "loss of 'a' was not measured"),
        ("hybrid", {"weighed": WEIGHED, "tried": {}}, "no division was tried"),
        ("trials", {"tried": {("a",): {}}}, "not measured"),
    ],
)
def test_mas_says_what_was_not_measured(measured, walk, method, losses, says):
    with pytest.raises(SplitImpossible, match=says):
        walk(mas(method=method), measured(losses=losses))


def test_mas_tries_a_single_pair_of_tasks_once(measured):
    strategy = choice_of("trials", 2, "exactly", seed=0, head_cost=0.25, shortlist=2)
    of = measured()
    two = replace(of, affinities=replace(of.affinities, tasks=("a", "b")))
    assert strategy.trials(two) == (("a",), ("b",), ("a", "b"))
