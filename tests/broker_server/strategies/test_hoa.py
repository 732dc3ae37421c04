import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.hoa import Hoa

TASKS = ("a", "b", "c")
LOSSES = {
    "measure": {
        ("a",): {"a": 1.0},
        ("b",): {"b": 1.0},
        ("c",): {"c": 1.0},
        ("a", "b"): {"a": 0.5, "b": 0.6},
        ("a", "c"): {"a": 2.0, "c": 2.0},
        ("b", "c"): {"b": 2.0, "c": 2.0},
    }
}


def test_hoa_trains_singles_and_pairs_and_then_the_groups_that_lose_least(measured, walk):
    pairs, measure, groups, end = walk(Hoa(TASKS, rounds=5, groups=2), measured(losses=LOSSES))
    assert (len(pairs.groups), pairs.steps, pairs.start) == (6, 30, None)
    assert (measure.groups, measure.data_split, measure.start) == (pairs.groups, "val", "pairs")
    assert (groups.groups, groups.start, groups.rounds) == ((("a", "b"), ("c",)), None, 5)
    assert (end.groups, end.sources, end.data_split) == (groups.groups, groups.groups, "test")


def test_hoa_without_a_loss_says_which(measured, walk):
    some = {"measure": {group: losses for group, losses in LOSSES["measure"].items() if group != ("a", "b")}}
    with pytest.raises(SplitImpossible, match="'a'"):
        walk(Hoa(TASKS, rounds=1, groups=2), measured(losses=some))


@pytest.mark.parametrize("groups", [1, 4])
def test_hoa_refuses_a_number_of_groups(groups):
    with pytest.raises(SplitImpossible, match="2 to 3"):
        Hoa(TASKS, rounds=1, groups=groups)
