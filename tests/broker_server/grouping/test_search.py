import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.grouping.search import MOST_SCORED, SplitImpossible, TaskSplit, score, search, self_affinity

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "split_golden.json").read_text())
TASKS, VALUES = GOLDEN["tasks"], GOLDEN["values"]


def partitions(items):
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i, block in enumerate(rest):
            yield [*rest[:i], [items[0], *block], *rest[i + 1 :]]


def matrices(most=5):
    return st.integers(1, most).flatmap(
        lambda size: st.lists(st.lists(st.floats(-10, 10), min_size=size, max_size=size), min_size=size, max_size=size)
    )


@pytest.mark.parametrize("case", GOLDEN["expected"], ids=lambda c: f"{c['mode']}-{c['groups']}")
def test_search_golden_values(case):
    found = search(TASKS, VALUES, case["groups"], case["mode"])
    assert {frozenset(g) for g in found.groups} == {frozenset(g) for g in case["partition"]}
    assert found.score == pytest.approx(case["score"], abs=1e-5)
    assert found.mode == case["mode"]


def test_self_affinity_golden_values():
    got = dict(zip(TASKS, self_affinity(np.array(VALUES)), strict=True))
    assert got == pytest.approx(GOLDEN["self_affinity"], abs=1e-5)


@pytest.mark.slow
@given(matrices(), st.integers(1, 5))
def test_search_agrees_with_enumeration(values, groups):
    tasks = [f"t{i}" for i in range(len(values))]
    scores = {k: [] for k in range(1, len(tasks) + 1)}
    for partition in partitions(tasks):
        scores[len(partition)].append(score(tasks, values, partition))
    if groups <= len(tasks):
        assert search(tasks, values, groups, "exactly").score == pytest.approx(max(scores[groups]), abs=1e-9)
    at_most = max(max(scores[k]) for k in range(1, min(groups, len(tasks)) + 1))
    assert search(tasks, values, groups, "at_most").score == pytest.approx(at_most, abs=1e-9)


@given(matrices(4).filter(lambda v: len(v) > 1), st.integers(1, 3))
def test_search_overlap_agrees_with_enumeration(values, groups):
    tasks = [f"t{i}" for i in range(len(values))]
    several = [g for n in range(2, len(tasks) + 1) for g in itertools.combinations(tasks, n)]
    best = max(
        score(tasks, values, chosen)
        for k in range(1, groups + 1)
        for chosen in itertools.combinations(several, k)
        if set().union(*chosen) == set(tasks)
    )
    found = search(tasks, values, groups, "overlap")
    assert found.score == pytest.approx(best, abs=1e-9)
    assert score(tasks, values, found.groups) == pytest.approx(found.score, abs=1e-9)
    assert len(found.groups) <= groups
    assert all(len(g) > 1 for g in found.groups)


@pytest.mark.slow
@given(matrices(6))
def test_search_all_in_one_scores_as_all_single(values):
    tasks = [f"t{i}" for i in range(len(values))]
    one = search(tasks, values, 1, "exactly").score
    assert search(tasks, values, len(tasks), "exactly").score == pytest.approx(one, abs=1e-9)


def test_search_nine_tasks_in_under_a_second():
    values = np.random.default_rng(0).normal(size=(9, 9))
    tasks = [f"t{i}" for i in range(9)]
    for mode in ("exactly", "at_most", "overlap"):
        start = time.process_time()
        search(tasks, values, 4, mode)
        assert time.process_time() - start < 1.0


def test_search_at_most_takes_the_fewest_groups_of_equal_score():
    assert search(["a", "b"], [[0, 1], [1, 0]], 2, "at_most").groups == (("a", "b"),)
    assert search(["a", "b"], [[0, 1], [1, 0]], 5, "overlap").groups == (("a", "b"),)


def test_search_single_task():
    for mode in ("exactly", "at_most", "overlap"):
        found = search(["a"], [[3.0]], 1, mode)
        assert (found.groups, found.score) == ((("a",),), 0.0)


@pytest.mark.parametrize(
    ("tasks", "values", "groups", "reason"),
    [
        ([], [], 1, "no tasks"),
        (["a", "a"], [[0, 0], [0, 0]], 1, "twice"),
        (["a", "b"], [[0, 1]], 1, "by as many"),
        (["a", "b"], [[0, 1], [0]], 1, "square table"),
        (["a", "b"], [[0, "x"], [0, 0]], 1, "square table"),
        (["a", "b"], [[0, float("nan")], [0, 0]], 1, "'a' to 'b' is nan"),
        (["a", "b"], [[0, 1], [float("inf"), 0]], 1, "'b' to 'a' is inf"),
        (["a", "b"], [[0, 1], [1, 0]], 3, "exactly 3"),
        (["a", "b"], [[0, 1], [1, 0]], 0, "0 groups"),
        ([f"t{i}" for i in range(17)], np.zeros((17, 17)), 2, "more than the 16"),
    ],
)
def test_search_impossible(tasks, values, groups, reason):
    with pytest.raises(SplitImpossible, match=reason):
        search(tasks, values, groups, "exactly")


def test_score_of_an_unknown_task_or_a_task_left_out():
    with pytest.raises(SplitImpossible, match="'z'"):
        score(["a", "b"], np.zeros((2, 2)), [["a", "z"], ["b"]])
    with pytest.raises(SplitImpossible, match="'b' is in no group"):
        score(["a", "b"], np.zeros((2, 2)), [["a"]])


def test_scores_of_all_groups_are_kept_while_they_are_few():
    found = TaskSplit(groups=(("a",),), score=1.0, mode="exactly")
    assert found.among(np.array([[0.0, 0.0], [1.0, 2.0]])).group_scores == (0.0, 3.0)
    assert found.among(np.zeros((2, MOST_SCORED + 1))) is found
