import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.aggregation.gpaggregation import aggregate, coefficients, cosines, softmax
from edge_runtime.wire.conflict import gram


def clients(number, size=6, seed=0):
    return list(np.random.default_rng(seed).standard_normal((number, size)).astype(np.float32))


def test_aggregate_without_conflict_is_the_weighted_mean():
    gradients = [np.abs(g) for g in clients(3)]
    expected = (gradients[0] * 1.0 + gradients[1] * 2.0 + gradients[2] * 5.0) / 8
    np.testing.assert_allclose(aggregate(gradients, [1, 2, 5]), expected, rtol=1e-6)


def test_aggregate_by_hand():
    """(1, 0) and (−1, 1) become (½, ½) and (0, 1); the second client has three times the data."""
    gradients = [np.array([1, 0], np.float32), np.array([-1, 1], np.float32)]
    np.testing.assert_allclose(aggregate(gradients, [1, 3]), [0.125, 0.875])


@given(st.integers(0, 200))
def test_aggregate_of_two_clients_goes_against_neither(seed):
    gradients = clients(2, seed=seed)
    found = aggregate(gradients, [1, 4]).astype(np.float64)
    assert all(found @ g >= -1e-5 * np.linalg.norm(g) for g in gradients)


@given(st.integers(0, 50))
def test_aggregate_of_two_clients_does_not_depend_on_their_order(seed):
    gradients, history = clients(2, seed=seed), clients(1, seed=seed + 1)[0]
    found = aggregate(gradients, [1, 4], history)
    np.testing.assert_allclose(aggregate(gradients[::-1], [4, 1], history), found, rtol=1e-5, atol=1e-6)


def test_aggregate_of_three_conflicting_clients_depends_on_their_order():
    gradients = [np.array(g, np.float32) for g in ((1, 0.1), (-1, 0.2), (0.1, -1))]
    found = aggregate(gradients, [1, 1, 1])
    assert np.abs(aggregate(gradients[::-1], [1, 1, 1]) - found).max() > 1e-3
    np.testing.assert_array_equal(aggregate(gradients, [1, 1, 1]), found)


def test_aggregate_attends_to_what_goes_on_as_before():
    gradients = [np.array(g, np.float32) for g in ((1, 0), (0, 1))]
    found = aggregate(gradients, [1, 1], np.array([5, 0], np.float32))
    a = 2 * np.exp([1.0, 0.0]) / (np.e + 1)
    np.testing.assert_allclose(found, a / 2, rtol=1e-6)


def test_aggregate_takes_another_attention():
    gradients = [np.array(g, np.float32) for g in ((1, 0), (-1, 1))]
    found = aggregate(gradients, [1, 1], np.ones(2, np.float32), lambda _: np.array([0.0, 4.0]))
    np.testing.assert_allclose(found, [-2.0, 2.0])  # a client that counts nothing conflicts with nobody


def test_attention_scales_before_it_projects():
    """How long g_j is makes no difference to what is taken away from g_i; how long g_i is does."""
    inner = np.array([[1.0, -0.5], [-0.5, 1.0]])
    np.testing.assert_allclose(coefficients(inner, [1, 1], np.array([2.0, 1.0])), [1.0 + 0.25, 0.5 + 0.5])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_softmax_is_one_on_average(values):
    factors = softmax(np.array(values))
    assert factors.mean() == pytest.approx(1.0)
    assert (np.diff(factors[np.argsort(values)]) >= 0).all()


def test_cosines_of_a_zero_vector_are_zero():
    vectors = [np.array(v, np.float32) for v in ((3, 4), (0, 0), (0, 2))]
    np.testing.assert_allclose(cosines(gram(vectors)), [0.8, 0.0])
    np.testing.assert_array_equal(cosines(gram(vectors[::-1][1:])), [0.0])


@pytest.mark.parametrize(("number", "examples"), [(0, []), (2, [1]), (2, [0, 0]), (2, [3, -1])])
def test_aggregate_refuses(number, examples):
    with pytest.raises(ValueError, match="cannot be aggregated"):
        aggregate(clients(number), examples)
