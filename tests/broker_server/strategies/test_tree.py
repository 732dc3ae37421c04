import math

import numpy as np
import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.planner import learning_rate
from broker_server.strategies.tree import Tree

TASKS = ("a", "b", "c")
AB, C = ("a", "b"), ("c",)
VALUES = np.array([[9.0, 9.0, -5.0], [9.0, 9.0, -5.0], [-5.0, -5.0, 9.0]])


class Told:
    """What a federation has measured: the loss of each group in each phase, the same for each of its tasks."""

    def __init__(self, measured, losses, joules=None):
        self.measured, self.losses, self.joules = measured, losses, joules or {}

    def next(self, tree, done):
        losses = {}
        for phase in done:
            if phase.work == "evaluate":
                known = self.losses.get(phase.name.split("-")[0], {})
                losses[phase.name] = {
                    group: dict.fromkeys(group, known[group]) for group in phase.groups if group in known
                }
        of = self.measured(losses=losses, values=VALUES, joules=lambda _, group: self.joules.get(group))
        return tree.next(done, of)

    def walk(self, tree):
        done = []
        while phase := self.next(tree, done):
            assert not tree.may_end(phase, self.measured())
            done.append(phase)
        return done


EQUAL = {"now": dict.fromkeys([TASKS, AB, C], 1.0)}
SPLIT_PAYS = EQUAL | {"tried": {TASKS: 0.9, AB: 0.1, C: 0.1, ("a",): 0.1, ("b",): 0.1}}
MERGED_PAYS = EQUAL | {"tried": {TASKS: 0.5, AB: 0.4, C: 0.4}}


def tree(rounds=8, decide_every=2, groups=2, tasks=TASKS):
    return Tree(tasks, rounds=rounds, decide_every=decide_every, groups=groups, head_cost=0.25)


def test_tree_splits_where_the_halves_gain_more_and_goes_on_from_the_trial(measured):
    done = Told(measured, SPLIT_PAYS).walk(tree())
    assert [phase.name for phase in done] == ["train-0", "now-0", "try-0", "tried-0", "train-1", "end"]
    first, now, tried, after, second, end = done
    assert (first.groups, first.rounds, first.probe_rounds, first.start) == ((TASKS,), 2, 2, None)
    assert (now.groups, now.data_split, after.groups, after.data_split) == ((TASKS,), "val", tried.groups, "val")
    assert (tried.groups, tried.start, tried.rounds) == ((TASKS, AB, C), "train-0", 1)
    assert (second.groups, second.start, second.sources) == ((AB, C), "try-0", (AB, C))
    assert (second.rounds, second.probe_rounds) == (5, 0)
    assert second.split.score == pytest.approx(3.0 - 0.3)
    assert (end.groups, end.start, end.data_split) == ((AB, C), "train-1", "test")


def test_tree_goes_on_merged_where_that_gains_more_for_its_cost(measured):
    done = Told(measured, MERGED_PAYS).walk(tree())
    trained = [phase for phase in done if phase.work == "train"]
    assert [phase.groups for phase in trained if phase.name.startswith("train")] == [(TASKS,)] * 3
    assert all(phase.split is None for phase in done)
    assert sum(phase.rounds for phase in trained) == 8


def test_tree_has_one_schedule_of_the_learning_rate(measured):
    done = Told(measured, SPLIT_PAYS).walk(tree())
    rates = [learning_rate(0.1, r, phase) for phase in done if phase.work == "train" for r in range(phase.rounds)]
    assert rates == pytest.approx([0.1 * (1 - r / 8) ** 0.9 for r in range(8)])


def test_tree_splits_again(measured):
    again = EQUAL | {"tried": {**SPLIT_PAYS["tried"], AB: 0.5}}
    done = Told(measured, again).walk(tree(rounds=9, groups=3))
    assert [phase.groups for phase in done if phase.name.startswith("train")] == [
        (TASKS,),
        (AB, C),
        (("a",), ("b",), C),
    ]
    assert done[6].groups == (AB, ("a",), ("b",), C)  # a single task has no halves


def test_tree_counts_joules_where_all_are_known(measured):
    dear = {TASKS: 1.0, AB: 5.0, C: 5.0}
    cheap = {TASKS: 9.0, AB: 1.0, C: 1.0}
    assert Told(measured, MERGED_PAYS, dear).walk(tree())[-1].groups == (TASKS,)
    assert Told(measured, MERGED_PAYS, cheap).walk(tree())[-1].groups == (AB, C)
    del cheap[C]
    assert Told(measured, MERGED_PAYS, cheap).walk(tree())[-1].groups == (TASKS,)


def test_tree_that_loses_by_splitting_stays_merged(measured):
    worse = EQUAL | {"tried": {TASKS: 3.0, AB: 1.1, C: 1.1}}
    assert Told(measured, worse).walk(tree())[-1].groups == (TASKS,)


def test_tree_may_end_with_a_trial(measured):
    done = Told(measured, SPLIT_PAYS).walk(tree(rounds=3))
    assert [phase.name for phase in done] == ["train-0", "now-0", "try-0", "tried-0", "end"]
    assert (done[-1].groups, done[-1].start, done[-1].sources) == ((AB, C), "try-0", (AB, C))


def test_tree_of_one_group_or_few_rounds_trains_it_to_the_end(measured):
    for few in (tree(groups=1), tree(rounds=2)):
        done = Told(measured, SPLIT_PAYS).walk(few)
        assert [phase.name for phase in done] == ["train-0", "end"]


@pytest.mark.parametrize("lost", ["now", "tried"])
def test_tree_without_validation_data_says_so(measured, lost):
    with pytest.raises(SplitImpossible, match="loss of 'a' was not measured"):
        Told(measured, SPLIT_PAYS | {lost: {}}).walk(tree())


def test_tree_without_affinities_says_so(measured):
    told = Told(lambda **more: measured(**{**more, "values": np.full((3, 3), math.nan)}), SPLIT_PAYS)
    with pytest.raises(SplitImpossible, match="not a finite number"):
        told.walk(tree())


@pytest.mark.parametrize("groups", [0, 4])
def test_tree_refuses_a_number_of_groups(groups):
    with pytest.raises(SplitImpossible, match="up to"):
        tree(groups=groups)
