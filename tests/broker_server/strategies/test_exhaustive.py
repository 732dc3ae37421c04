import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.exhaustive import Exhaustive

TASKS = ("c", "a", "b")
LOSSES = {
    ("a",): {"a": 1.0},
    ("b",): {"b": 1.0},
    ("c",): {"c": 1.0},
    ("a", "b"): {"a": 0.5, "b": 0.6},
    ("a", "c"): {"a": 2.0, "c": 2.0},
    ("b", "c"): {"b": 2.0, "c": 2.0},
    ("a", "b", "c"): {"a": 1.0, "b": 1.0, "c": 1.0},
}


def exhaustive(tasks=TASKS, groups=2):
    return Exhaustive(tasks, merged_rounds=3, split_rounds=5, probe_from=1, probe_rounds=2, groups=groups)


def test_exhaustive_trains_every_group_and_splits_by_validation_losses(measured, walk):
    merge, every, measure, survey, split, end = walk(exhaustive(), measured(losses={"measure": LOSSES}))
    assert (merge.groups, merge.rounds, merge.probe_from, merge.probe_rounds) == ((("a", "b", "c"),), 3, 1, 2)
    assert (set(every.groups), every.start, every.rounds) == (set(LOSSES), "merge", 5)
    assert (measure.groups, measure.data_split, survey.groups, survey.data_split) == (
        every.groups,
        "val",
        every.groups,
        "test",
    )
    assert (split.groups, split.start, split.rounds) == ((("a", "b"), ("c",)), "merge", 5)
    assert split.split.score == pytest.approx(-2.1 / 3)
    assert (end.groups, end.start, end.data_split) == (split.groups, "split", "test")


def test_exhaustive_leaves_out_groups_of_which_a_task_was_not_measured(measured, walk):
    losses = {**LOSSES, ("a", "b"): {"a": 0.5}}
    *_, split, _ = walk(exhaustive(), measured(losses={"measure": losses}))
    assert split.groups in {(("a", "c"), ("b",)), (("a",), ("b", "c"))}


def test_exhaustive_without_validation_data_says_so(measured, walk):
    with pytest.raises(SplitImpossible, match="no validation data"):
        walk(exhaustive(), measured(losses={"measure": {group: {} for group in LOSSES}}))


@pytest.mark.parametrize(("tasks", "groups"), [("a", 1), ("abcdefghi", 2), ("abc", 4), ("abc", 0)])
def test_exhaustive_refuses_what_it_cannot_do(tasks, groups):
    with pytest.raises(SplitImpossible, match="cannot be"):
        exhaustive(tuple(tasks), groups)
