import numpy as np
import pytest

from broker_server.grouping.alternatives import count
from broker_server.grouping.quality import division_score, known_divisions, ordered, quality
from broker_server.grouping.search import score, task_scores

ALONE = {("a",): {"a": 1.0}, ("b",): {"b": 1.0}, ("c",): {"c": 1.0}}
TOGETHER = {("a", "b"): {"a": 0.5, "b": 0.5}, ("a", "c"): {"a": 2.0, "c": 2.0}, ("b", "c"): {"b": 1.0, "c": 1.0}}
AB, AC, BC = ((("a", "b"), ("c",)), (("a", "c"), ("b",)), (("a",), ("b", "c")))


def test_known_divisions_are_those_whose_groups_were_all_measured():
    known = known_divisions({**ALONE, **TOGETHER}, "abc", 2)
    assert known == {AB: 2.0, AC: 5.0, BC: 3.0}
    assert known_divisions(ALONE, "abc", 3) == {(("a",), ("b",), ("c",)): 3.0}
    assert known_divisions({("b", "a"): {"a": 0.5, "b": 0.5}, ("c",): {"c": 1.0}}, "abc", 2) == {AB: 2.0}
    assert known_divisions(TOGETHER, "abc", 2) == {}
    assert known_divisions(ALONE, "abc", 2) == {}


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_known_divisions_of_all_groups_are_all_divisions(groups):
    tasks = "abcdef"
    every = [[task for i, task in enumerate(tasks) if mask >> i & 1] for mask in range(1, 64)]
    assert len(known_divisions({tuple(g): dict.fromkeys(g, 1.0) for g in every}, tasks, groups)) == count(6, groups)


def test_quality_of_a_choice_by_its_place_among_the_known():
    losses = {AB: 2.0, AC: 5.0, BC: 3.0}
    found = quality(losses, BC, {AB: 1.0, AC: -2.0, BC: 0.0})
    assert (found.known, found.rank, found.best, found.worst) == (3, 2, 2.0, 5.0)
    assert found.regret == pytest.approx(0.5)
    assert found.random == pytest.approx(10 / 3)
    assert found.gain == pytest.approx(0.25)
    assert found.correlation == pytest.approx(1.0)
    assert quality(losses, AC, {AB: -1.0, AC: 2.0, BC: 0.0}).correlation == pytest.approx(-1.0)


def test_quality_says_nothing_of_what_cannot_be_told():
    assert quality({AB: 2.0, AC: 5.0, BC: 3.0}, AB, {AB: 1.0, AC: 2.0}).correlation is None
    assert quality({AB: 2.0, AC: 5.0, BC: 3.0}, AB, dict.fromkeys((AB, AC, BC), 1.0)).correlation is None
    alike = quality({AB: 2.0, AC: 2.0}, AC, {})
    assert (alike.rank, alike.regret, alike.gain) == (1, 0.0, None)
    with pytest.raises(KeyError):
        quality({AB: 2.0}, AC, {})


def test_division_score_is_that_of_the_search():
    values = np.random.default_rng(0).normal(size=(3, 3))
    of_groups = task_scores(values).sum(axis=1).tolist()
    for division in (AB, AC, BC):
        assert division_score("abc", of_groups, division) == pytest.approx(score("abc", values, division))


def test_ordered_is_the_same_for_equal_divisions():
    assert ordered([["c"], ["b", "a"]]) == AB
