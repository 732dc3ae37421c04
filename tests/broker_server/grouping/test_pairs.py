import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.grouping.pairs import choose, estimated_loss
from broker_server.grouping.search import SplitImpossible

SINGLES = {"a": 1.0, "b": 1.0, "c": 1.0}
PAIRS = {("a", "b"): (0.5, 0.6), ("a", "c"): (1.5, 2.0), ("c", "b"): (3.0, 0.9)}


def losses(most=5):
    value = st.floats(0, 10)

    def measured(tasks):
        pairs = {pair: st.tuples(value, value) for pair in itertools.combinations(tasks, 2)}
        return st.tuples(st.fixed_dictionaries(dict.fromkeys(tasks, value)), st.fixed_dictionaries(pairs))

    return st.integers(1, most).map(lambda n: [f"t{i}" for i in range(n)]).flatmap(measured)


def by_hand(task, group, singles, pairs):
    others = [other for other in group if other != task]
    if not others:
        return singles[task]
    both = [pairs[o, task][1] if (o, task) in pairs else pairs[task, o][0] for o in others]
    return sum(both) / len(both)


def test_estimated_loss_by_hand():
    """In {a, b, c}: a is (0.5 + 1.5) / 2, b is (0.6 + 0.9) / 2, c is (2 + 3) / 2."""
    assert estimated_loss("abc", SINGLES, PAIRS, [("a", "b", "c")]) == pytest.approx(1.0 + 0.75 + 2.5)
    assert estimated_loss("abc", SINGLES, PAIRS, [("a", "b"), ("c",)]) == pytest.approx(0.5 + 0.6 + 1.0)


def test_estimated_loss_serves_each_task_by_its_best_group():
    assert estimated_loss("abc", SINGLES, PAIRS, [("a", "b"), ("b", "c"), ("c",)]) == pytest.approx(0.5 + 0.6 + 1.0)


def test_choose_by_hand():
    found = choose("abc", SINGLES, PAIRS, 2)
    assert found.groups == (("a", "b"), ("c",))
    assert found.score == pytest.approx(-(0.5 + 0.6 + 1.0) / 3)
    assert choose("abc", SINGLES, PAIRS, 1).groups == (("a", "b", "c"),)
    assert choose("abc", SINGLES, PAIRS, 3, "exactly").groups == (("a",), ("b",), ("c",))


@pytest.mark.slow
@given(losses(4), st.integers(1, 3))
def test_choose_overlap_agrees_with_enumeration(measured, groups):
    singles, pairs = measured
    tasks = list(singles)
    every = [group for n in range(1, len(tasks) + 1) for group in itertools.combinations(tasks, n)]
    least = min(
        sum(min(by_hand(task, group, singles, pairs) for group in chosen if task in group) for task in tasks)
        for k in range(1, groups + 1)
        for chosen in itertools.combinations(every, k)
        if set().union(*chosen) == set(tasks)
    )
    found = choose(tasks, singles, pairs, groups)
    assert -found.score * len(tasks) == pytest.approx(least, abs=1e-9)
    assert estimated_loss(tasks, singles, pairs, found.groups) == pytest.approx(least, abs=1e-9)
    assert len(found.groups) <= groups


@pytest.mark.slow
@given(losses(), st.integers(1, 5))
def test_choose_more_groups_never_lose_more(measured, groups):
    singles, pairs = measured
    fewer, more = (choose(list(singles), singles, pairs, n).score for n in (groups, groups + 1))
    assert more >= fewer - 1e-9


@pytest.mark.slow
@given(losses())
def test_choose_does_not_depend_on_how_pairs_are_written(measured):
    singles, pairs = measured
    turned = {(b, a): (second, first) for (a, b), (first, second) in pairs.items()}
    assert choose(list(singles), singles, pairs, 2) == choose(list(singles), singles, turned, 2)


@pytest.mark.parametrize(
    ("singles", "pairs", "reason"),
    [
        ({"a": 1.0}, {("a", "b"): (1.0, 1.0)}, "'b' alone was not measured"),
        ({"a": 1.0, "b": 1.0}, {}, "'a' with 'b' were not measured"),
        ({"a": 1.0, "b": 1.0}, {("a", "b"): (1.0, 1.0), ("b", "a"): (1.0, 1.0)}, "there twice"),
        ({"a": 1.0, "b": float("nan")}, {("a", "b"): (1.0, 1.0)}, "'b' is not a finite"),
        ({"a": 1.0, "b": 1.0}, {("a", "b"): (float("inf"), 1.0)}, "'a' is not a finite"),
    ],
)
def test_choose_impossible(singles, pairs, reason):
    with pytest.raises(SplitImpossible, match=reason):
        choose(["a", "b"], singles, pairs, 1)
