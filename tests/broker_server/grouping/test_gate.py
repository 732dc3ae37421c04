import pytest

from broker_server.grouping.gate import CANNOT_TELL, gate, spread
from broker_server.grouping.statistics import Estimate


def of(mean, half_width=0.1):
    return Estimate(n=5, mean=mean, half_width=half_width)


AB, AC, BC = ((("a", "b"), ("c",)), (("a", "c"), ("b",)), (("a",), ("b", "c")))
MET = {"conflict": of(0.5), "learnt": {"a": 0.5, "b": 0.9}, "spread": (0.4, 0.1)}


def test_gate_is_open_where_all_conditions_are_met():
    found = gate(**MET)
    assert found.is_open
    assert "can tell groupings apart: all-in-one loses +0.5000 ± 0.1000" in found.sentence
    assert "b loses 90 % of what a constant prediction does" in found.sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conflict": of(0.1)}, "all-in-one loses +0.1000 ± 0.1000 to one-by-one, not more than the interval"),
        ({"conflict": of(-0.5)}, "all-in-one loses -0.5000"),
        ({"conflict": of(0.5, None)}, "without an interval over seeds"),
        ({"conflict": None}, "all-in-one and one-by-one were not both measured"),
        ({"learnt": {"a": 0.5, "b": 0.91}}, "b loses 91 % of what a constant prediction does"),
        ({"learnt": None}, "constant predictions were not measured"),
        ({"learnt": {}}, "constant predictions were not measured"),
        ({"spread": (0.1, 0.1)}, "no more than seeds (0.1000)"),
        ({"spread": None}, "no two divisions"),
    ],
)
def test_gate_is_shut_by_each_condition_and_says_by_which(change, words):
    found = gate(**{**MET, **change})
    assert not found.is_open
    assert found.sentence.startswith(CANNOT_TELL)
    assert words in found.sentence
    assert found.sentence.count(";") == 0


def test_spread_is_between_divisions_and_within_one_over_seeds():
    losses = {0: {AB: 1.0, AC: 3.0}, 1: {AB: 11.0, AC: 13.0, BC: 0.0}}
    between, within = spread(losses)
    assert (between, within) == (pytest.approx(2**0.5), 0.0)
    between, within = spread({0: {AB: 1.0, AC: 3.0}, 1: {AB: 3.0, AC: 1.0}})
    assert (between, within) == (0.0, pytest.approx(2**0.5))


@pytest.mark.parametrize("losses", [{}, {0: {AB: 1.0, AC: 2.0}}, {0: {AB: 1.0}, 1: {AB: 2.0}}, {0: {AB: 1.0}, 1: {}}])
def test_spread_of_too_little_is_not_measured(losses):
    assert spread(losses) is None


def test_gate_names_what_intervals_are_over():
    assert "over two devices or more" in gate(None, None, None, over="devices").sentence
