import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.grouping.statistics import difference, estimate, ratio, t_quantile

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (30, 2.04227), (31, 2.03951), (60, 2.00030)]
)
def test_t_quantile_is_that_of_the_tables(freedom, expected):
    assert t_quantile(freedom) == pytest.approx(expected, abs=6e-5)


def test_t_quantile_falls_to_the_normal_one():
    values = [t_quantile(freedom) for freedom in range(1, 400)]
    assert values == sorted(values, reverse=True)
    assert t_quantile(10**7) == pytest.approx(1.959964, abs=1e-5)


def test_t_quantile_needs_a_degree_of_freedom():
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0)


def test_estimate_of_three_seeds():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean) == (3, 2.0)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3))


def test_estimate_of_one_seed_has_no_interval():
    found = estimate([2.5])
    assert (found.n, found.mean, found.half_width) == (1, 2.5, None)


def test_estimate_leaves_out_what_was_not_measured():
    assert estimate([4.0, None, 4.0]) == estimate([4.0, 4.0])
    assert estimate([None, None]) is None
    assert estimate([]) is None


@given(VALUES)
def test_estimate_does_not_depend_on_the_order(values):
    one, other = estimate(values), estimate(values[::-1])
    assert one.mean == pytest.approx(other.mean)
    assert one.half_width == pytest.approx(other.half_width)


@given(VALUES, st.floats(-1e3, 1e3))
def test_estimate_moves_with_its_values_and_keeps_its_width(values, by):
    one, other = estimate(values), estimate([value + by for value in values])
    assert other.mean == pytest.approx(one.mean + by, abs=1e-6, rel=1e-9)
    assert other.half_width == pytest.approx(one.half_width, abs=1e-4, rel=1e-6)


def test_ratio_is_of_the_same_seeds():
    found = ratio({0: 1.0, 1: 4.0, 5: 9.0}, {0: 2.0, 1: 8.0, 7: 1.0})
    assert (found.n, found.mean, found.half_width) == (2, 0.5, 0.0)


def test_ratio_needs_both_and_a_reference_that_is_not_zero():
    assert ratio({0: 1.0, 1: None, 2: 3.0}, {0: None, 1: 1.0, 2: 0.0}) is None


def test_difference_is_of_the_same_seeds():
    found = difference({0: 1.0, 1: 4.0, 2: None}, {0: 2.0, 1: 5.0, 2: 3.0})
    assert (found.n, found.mean) == (2, -1.0)
    assert difference({0: 1.0}, {1: 1.0}) is None
