import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.grouping.alternatives import (
    best_divisions,
    count,
    divided,
    division,
    hierarchical,
    random_groups,
    worst,
)
from broker_server.grouping.search import SplitImpossible, score, search, task_scores

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "split_golden.json").read_text())
TASKS, VALUES = GOLDEN["tasks"], GOLDEN["values"]


def matrices(most=5, least=1):
    return st.integers(least, most).flatmap(
        lambda size: st.lists(st.lists(st.floats(-10, 10), min_size=size, max_size=size), min_size=size, max_size=size)
    )


def named(values):
    return [f"t{i}" for i in range(len(values))]


def every(tasks, groups):
    return [division(tasks, groups, number) for number in range(count(len(tasks), groups))]


def halved(groups):
    for i, group in enumerate(groups):
        for n in range(1, len(group)):
            for half in itertools.combinations(group, n):
                yield [*groups[:i], half, tuple(t for t in group if t not in half), *groups[i + 1 :]]


@pytest.mark.parametrize(("tasks", "groups", "number"), [(0, 0, 1), (3, 0, 0), (4, 2, 7), (5, 3, 25), (2, 3, 0)])
def test_count_is_stirlings_number(tasks, groups, number):
    assert count(tasks, groups) == number


@pytest.mark.parametrize(("tasks", "groups"), [(1, 1), (4, 2), (5, 3), (6, 4), (6, 6)])
def test_division_numbers_name_every_division_once(tasks, groups):
    names = [f"t{i}" for i in range(tasks)]
    found = {frozenset(map(frozenset, groups_)) for groups_ in every(names, groups)}
    assert len(found) == count(tasks, groups)
    assert all(len(one) == groups and sorted(t for g in one for t in g) == names for one in found)


def test_nine_tasks_have_21147_divisions():
    assert sum(count(9, groups) for groups in range(1, 10)) == 21_147


@pytest.mark.slow
@given(matrices(least=2), st.integers(2, 5))
def test_divided_is_the_best_single_step(values, groups):
    tasks = named(values)
    before = division(tasks, min(groups, len(tasks)) - 1, 0)
    best = max(score(tasks, values, after) for after in halved(before))
    found = divided(tasks, values, before)
    assert found.score == pytest.approx(best, abs=1e-9)
    assert score(tasks, values, found.groups) == pytest.approx(found.score, abs=1e-12)


@pytest.mark.slow
@given(matrices(), st.integers(1, 5))
def test_hierarchical_is_never_above_the_search(values, groups):
    tasks = named(values)
    groups = min(groups, len(tasks))
    found = hierarchical(tasks, values, groups)
    assert len(found.groups) == groups
    assert found.score <= search(tasks, values, groups, "exactly").score + 1e-9
    if groups == 2:
        assert found.score == pytest.approx(search(tasks, values, 2, "exactly").score, abs=1e-9)


def test_hierarchical_refines_the_groups_that_it_had():
    two, three = (hierarchical(TASKS, VALUES, groups).groups for groups in (2, 3))
    assert all(any(set(group) <= set(whole) for whole in two) for group in three)


def test_hierarchical_at_most_stops_where_nothing_gains():
    good = np.ones((3, 3))
    assert hierarchical("abc", good, 3, "at_most").groups == (("a", "b", "c"),)
    assert hierarchical("abc", good, 3).groups == (("a",), ("b",), ("c",))
    pair = np.array([[0, 5, -5], [5, 0, -5], [-5, -5, 0]], np.float64)
    assert hierarchical("abc", pair, 3, "at_most").groups == (("a", "b"), ("c",))
    assert hierarchical("abc", pair, 3, "at_most").mode == "at_most"


@pytest.mark.slow
@given(matrices(), st.integers(1, 5))
def test_worst_agrees_with_enumeration(values, groups):
    tasks = named(values)
    groups = min(groups, len(tasks))
    lowest = min(score(tasks, values, one) for one in every(tasks, groups))
    found = worst(tasks, values, groups)
    assert found.score == pytest.approx(lowest, abs=1e-9)
    assert score(tasks, values, found.groups) == pytest.approx(found.score, abs=1e-9)


def test_random_groups_are_seeded_and_reach_every_division():
    assert random_groups(TASKS, 2, 3) == random_groups(TASKS, 2, 3)
    found = {frozenset(random_groups("abcd", 2, seed)) for seed in range(200)}
    assert len(found) == 7


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: divided("ab", np.zeros((2, 2)), [("a",)]), "no division"),
        (lambda: divided("ab", np.zeros((2, 2)), [("a", "b"), ()]), "no division"),
        (lambda: divided("abc", np.zeros((3, 3)), [("a", "b"), ("a", "b"), ("a",)]), "no division"),
        (lambda: divided("ab", np.zeros((2, 2)), [("a",), ("b",)]), "nothing is left"),
        (lambda: hierarchical("ab", np.zeros((2, 2)), 3), "into 3 groups"),
        (lambda: worst("ab", np.zeros((2, 2)), 3), "exactly 3"),
        (lambda: random_groups("ab", 3, 0), "exactly 3"),
        (lambda: random_groups("", 1, 0), "no tasks"),
    ],
)
def test_alternatives_impossible(call, reason):
    with pytest.raises(SplitImpossible, match=reason):
        call()


def test_best_divisions_are_those_that_score_most_in_order():
    table = task_scores(np.array(VALUES))
    found = best_divisions(TASKS, table, 3, 4)
    scores = [score(TASKS, VALUES, groups) for groups in every(TASKS, 3)]
    assert [score(TASKS, VALUES, groups) for groups in found] == pytest.approx(sorted(scores, reverse=True)[:4])
    assert set(map(frozenset, found[:1])) == {frozenset(search(TASKS, VALUES, 3, "exactly").groups)}
    assert len(best_divisions(TASKS, table, 3, 100)) == count(5, 3)


@pytest.mark.parametrize(("tasks", "groups"), [("abcdefghijkl", 4), ("ab", 3)])
def test_best_divisions_refuses_too_many_or_none(tasks, groups):
    with pytest.raises(SplitImpossible, match="can be ranked"):
        best_divisions(tasks, np.zeros((1, 1)), groups, 1)
