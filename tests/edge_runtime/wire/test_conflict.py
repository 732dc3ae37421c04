import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_runtime.wire.conflict import BLOCK, cagrad, combine, gram, pcgrad, project


def vectors(number, size, seed=0):
    return list(np.random.default_rng(seed).standard_normal((number, size)).astype(np.float32))


@st.composite
def gradients(draw, least=1, most=5):
    """(K, P) float64 gradients, of lengths that differ, in few dimensions so that they conflict."""
    number, size = draw(st.integers(least, most)), draw(st.integers(1, 4))
    numbers = st.floats(-10, 10).map(lambda value: round(value, 2))
    return np.array(
        draw(st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=number, max_size=number)), np.float64
    )


def projected_by_hand(g, orders):
    result = []
    for i, order in enumerate(orders):
        mine = g[i].copy()
        for j in order:
            if j != i and mine @ g[j] < 0:
                mine = mine - (mine @ g[j]) / (g[j] @ g[j]) * g[j]
        result.append(mine)
    return np.array(result)


@pytest.mark.parametrize("size", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_gram_is_all_inner_products(size):
    found = vectors(3, size)
    expected = np.array([[np.dot(a.astype(np.float64), b.astype(np.float64)) for b in found] for a in found])
    np.testing.assert_allclose(gram(found), expected, rtol=1e-9, atol=1e-9)


def test_gram_of_arrays_takes_every_element():
    found = [part.reshape(2, 3, 4) for part in vectors(2, 24)]
    np.testing.assert_allclose(gram(found), gram([part.reshape(-1) for part in found]))


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 5])
def test_combine_is_the_weighted_sum(size):
    found = vectors(3, size)
    expected = sum(factor * v.astype(np.float64) for factor, v in zip((0.5, -2.0, 1e-9), found, strict=True))
    result = combine(found, np.array([0.5, -2.0, 1e-9]))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected.astype(np.float32))


def test_combine_sums_in_float64():
    ones = [np.full(3, value, np.float32) for value in (1e8, 1.0, -1e8)]
    np.testing.assert_array_equal(combine(ones, np.ones(3)), np.ones(3))


def test_project_by_hand():
    """g_0 = (1, 0) and g_1 = (−1, 1): each loses what goes against the other."""
    g = np.array([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(project(g @ g.T) @ g, [[0.5, 0.5], [0.0, 1.0]])


@given(gradients(2, 2))
def test_project_of_a_pair_leaves_no_conflict_with_the_other(g):
    mine = project(g @ g.T) @ g
    for i, j in ((0, 1), (1, 0)):
        assert mine[i] @ g[j] >= -1e-9 * np.linalg.norm(g[i]) * np.linalg.norm(g[j])


@given(gradients())
def test_project_leaves_no_conflict_with_the_last_that_was_met(g):
    mine = project(g @ g.T) @ g
    for i in range(len(g)):
        last = [j for j in range(len(g)) if j != i][-1:]
        for j in last:
            assert mine[i] @ g[j] >= -1e-9 * np.linalg.norm(g[i]) * np.linalg.norm(g[j])


@given(gradients())
def test_project_never_makes_a_gradient_longer(g):
    mine = project(g @ g.T) @ g
    assert (np.linalg.norm(mine, axis=1) <= np.linalg.norm(g, axis=1) * (1 + 1e-9) + 1e-12).all()


@given(gradients(), st.randoms(use_true_random=False))
def test_project_follows_the_definition(g, random):
    orders = [random.sample(range(len(g)), len(g)) for _ in g]
    found = project(g @ g.T, orders) @ g
    np.testing.assert_allclose(found, projected_by_hand(g, orders), rtol=0, atol=1e-9 * np.abs(g).max())


@given(st.integers(1, 6), st.integers(0, 100))
def test_project_of_gradients_without_conflict_is_themselves(number, seed):
    g = np.abs(np.random.default_rng(seed).standard_normal((number, 7)))
    np.testing.assert_array_equal(project(g @ g.T), np.eye(number))
    shares = np.linspace(1, 2, number)
    np.testing.assert_array_equal(pcgrad(g @ g.T, shares, [seed]), shares)


def test_project_passes_over_a_gradient_of_zeros_and_what_is_not_finite():
    g = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    assert np.isfinite(project(g @ g.T)).all()
    np.testing.assert_array_equal(project(np.full((2, 2), np.nan)), np.eye(2))


def test_pcgrad_draws_its_orders_from_the_seed():
    g = np.array([[1.0, 0.0, 0.2], [-1.0, 1.0, 0.1], [-0.5, -1.0, -0.3]])
    inner, shares = g @ g.T, np.ones(3)
    np.testing.assert_array_equal(pcgrad(inner, shares, [1, 2]), pcgrad(inner, shares, [1, 2]))
    assert len({tuple(pcgrad(inner, shares, [seed])) for seed in range(20)}) > 1


@given(gradients(2, 2), st.integers(0, 5))
def test_pcgrad_of_two_does_not_depend_on_seed_or_order(g, seed):
    inner = g @ g.T
    found = pcgrad(inner, np.ones(2), [seed])
    np.testing.assert_allclose(pcgrad(inner[::-1, ::-1], np.ones(2), [9])[::-1], found, rtol=1e-9)


@given(gradients(), st.sampled_from([0.1, 0.4, 0.9]))
def test_cagrad_is_the_best_direction_near_the_mean(g, c):
    """No direction in the ball gains more than ⟨g_w, g_0⟩ + c‖g_0‖‖g_w‖, whatever w; the one found gains nearly it."""
    size = np.linalg.norm(g, axis=1)
    assume((size > 0.1).all())
    number = len(g)
    mean = g.mean(axis=0)
    coefficients = cagrad(g @ g.T, np.full(number, 1 / number), c)
    direction = coefficients @ g
    length = c * np.linalg.norm(mean)
    assert np.linalg.norm(direction - mean) <= length * (1 + 1e-9) + 1e-12
    if number == 1:
        return
    extra = coefficients - 1 / number
    w = extra / extra.sum() if extra.sum() > 0 else np.full(number, 1 / number)
    bound = w @ g @ mean + length * np.linalg.norm(w @ g)
    assert (g @ direction).min() >= bound - 2e-4 * size.max() ** 2


def test_cagrad_by_hand():
    """g_0 = (3, 1), g_1 = (−1, 1): the worst off is g_1, and alone decides while the ball is small."""
    g = np.array([[3.0, 1.0], [-1.0, 1.0]])
    found = cagrad(g @ g.T, np.full(2, 0.5), 0.1) @ g
    expected = g.mean(axis=0) + 0.1 * np.sqrt(2) * g[1] / np.sqrt(2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(gradients(), st.permutations(range(5)))
def test_cagrad_does_not_depend_on_the_order(g, shuffled):
    order = [i for i in shuffled if i < len(g)]
    assume((np.linalg.norm(g, axis=1) > 0.1).all())
    shares = np.linspace(1, 2, len(g))
    there = cagrad(g @ g.T, shares, 0.4) @ g
    again = cagrad((g @ g.T)[np.ix_(order, order)], shares[order], 0.4) @ g[order]
    np.testing.assert_allclose(again, there, atol=1e-4 * np.abs(g).max())


@given(gradients())
def test_cagrad_without_a_ball_is_the_mean(g):
    shares = np.linspace(1, 2, len(g))
    np.testing.assert_array_equal(cagrad(g @ g.T, shares, 0.0), shares)


def test_cagrad_passes_over_a_gradient_of_zeros_and_what_is_not_finite():
    g = np.array([[3.0, 1.0], [0.0, 0.0], [-1.0, 1.0]])
    shares = np.ones(3)
    found = cagrad(g @ g.T, shares, 0.4)
    assert found[1] == 1.0
    assert found[2] > 1.0
    np.testing.assert_array_equal(cagrad(np.diag([1.0, 0.0, 0.0]), shares, 0.4), shares)
    np.testing.assert_array_equal(cagrad(np.full((3, 3), np.inf), shares, 0.4), shares)


def test_cagrad_of_gradients_that_cancel_is_finite():
    g = np.array([[1.0, 0.0], [-2.0, 0.0], [1.0, 1e-12]])
    assert np.isfinite(cagrad(g @ g.T, np.ones(3), 0.5)).all()


def test_cagrad_of_many_gradients_of_all_lengths():
    random = np.random.default_rng(0)
    g = random.standard_normal((32, 40)) * 10.0 ** random.uniform(-6, 6, (32, 1))
    assert np.isfinite(cagrad(g @ g.T, np.ones(32), 0.4)).all()
