import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.fixed import FixedGroups


def test_fixed_trains_each_group_from_the_bundle_and_tests_all(measured, walk):
    train, end = walk(FixedGroups(("a", "b", "c"), (("c",), ("b", "a")), rounds=3), measured())
    assert (train.groups, train.start, train.rounds) == ((("c",), ("a", "b")), None, 3)
    assert (end.groups, end.sources, end.start, end.data_split) == (train.groups, train.groups, "train", "test")


def test_fixed_serves_a_task_of_several_groups_by_the_first(measured, walk):
    _, end = walk(FixedGroups(("a", "b"), (("a", "b"), ("b",)), rounds=1), measured())
    assert (end.groups, end.sources) == ((("a", "b"),), (("a", "b"),))


@pytest.mark.parametrize(
    ("groups", "says"), [((("a", "z"), ("b",)), "'z' that the federation does not"), ((("a",),), "'b' is in none")]
)
def test_fixed_refuses_groups_that_are_not_of_the_tasks(groups, says):
    with pytest.raises(SplitImpossible, match=says):
        FixedGroups(("a", "b"), groups, rounds=1)
