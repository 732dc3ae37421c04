import numpy as np
import pytest

from broker_server.grouping.search import SplitImpossible, search
from broker_server.grouping.training_cost import Candidate, candidates, choose, training_cost

# a and b help one another, c and d do, and the pairs disturb one another.
VALUES = np.array([[0, 2, -1, -1], [2, 0, -1, -1], [-1, -1, 0, 2], [-1, -1, 2, 0]], np.float64)


def by_groups(groups):
    return training_cost(groups, encoder=10.0, heads=dict.fromkeys("abcd", 1.0))


def test_training_cost_is_one_encoder_a_group_and_every_head():
    assert training_cost((("a", "b"), ("b",)), encoder=10.0, heads={"a": 1.0, "b": 2.0}) == 25.0


def test_offers_are_the_best_divisions_with_gain_over_one_group():
    found = candidates("abcd", VALUES, 4, by_groups)
    assert [len(candidate.groups) for candidate in found] == [1, 2, 3, 4]
    assert [candidate.cost for candidate in found] == [14.0, 24.0, 34.0, 44.0]
    one = search("abcd", VALUES, 1, "exactly").score
    for candidate in found:
        assert candidate.gain == search("abcd", VALUES, len(candidate.groups), "exactly").score - one


def test_offers_at_most_leave_out_what_is_there_already():
    assert [len(candidate.groups) for candidate in candidates("abcd", VALUES, 4, by_groups, "at_most")] == [1, 2]


def test_choose_gains_most_for_its_cost():
    assert choose(candidates("abcd", VALUES, 4, by_groups)).groups == (("a", "b"), ("c", "d"))


def test_choose_weighs_cost_against_gain():
    one = Candidate(groups=(("a", "b"),), gain=0.0, cost=10.0)
    two = Candidate(groups=(("a",), ("b",)), gain=1.0, cost=20.0)
    better = Candidate(groups=(("b",), ("a",)), gain=1.5, cost=40.0)
    assert choose([one, two, better]) == two
    assert choose([one, better]) == better
    assert two.rate == 0.05


def test_choose_does_not_split_where_nothing_gains():
    found = candidates("abcd", np.ones((4, 4)), 4, by_groups)
    assert choose(found).groups == (("a", "b", "c", "d"),)


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_offers_refuse_what_is_not_a_cost(cost):
    with pytest.raises(SplitImpossible, match="a cost is a number above 0"):
        candidates("abcd", VALUES, 2, lambda _: cost)


def test_choose_needs_an_offer():
    with pytest.raises(ValueError, match="no candidate"):
        choose([])
