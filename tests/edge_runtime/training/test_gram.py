import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training.gram import first_order_affinity, weight_decay_terms
from edge_runtime.training.optimizer import BLOCK
from edge_runtime.wire.conflict import gram


def vectors(tasks, size, seed=0):
    return list(np.random.default_rng(seed).standard_normal((tasks, size)).astype(np.float32))


@pytest.mark.parametrize("size", [3, BLOCK + 7])
def test_pull_is_the_decay_along_each_gradient(size):
    weights, *gradients = vectors(4, size)
    expected = [0.01 * np.dot(weights.astype(np.float64), g.astype(np.float64)) for g in gradients]
    np.testing.assert_allclose(weight_decay_terms(weights, gradients, 0.01), expected, rtol=1e-9)
    assert not weight_decay_terms(weights, gradients, 0.0).any()


def test_first_order_by_hand():
    """Two tasks, g_0 = (3, 4), g_1 = (1, −2), θ = (1, 1), decay 0.5, losses 2 and 4."""
    gradients = [np.array([3, 4], np.float32), np.array([1, -2], np.float32)]
    decay_terms = weight_decay_terms(np.ones(2, np.float32), gradients, 0.5)
    np.testing.assert_allclose(decay_terms, [3.5, -0.5])
    expected = [[(25 + 3.5) / 2, (-5 - 0.5) / 4], [(-5 + 3.5) / 2, (5 - 0.5) / 4]]
    np.testing.assert_allclose(first_order_affinity(gram(gradients), [2.0, 4.0], decay_terms), expected)


@given(st.integers(0, 1000), st.floats(0, 0.1))
def test_first_order_is_the_limit_of_the_look_ahead(seed, decay):
    """Quadratic losses L_j = 1 + |A_j θ|²: the exact affinity tends to the first order with lr."""
    random = np.random.default_rng(seed)
    maps, theta = random.standard_normal((3, 4, 6)), random.standard_normal(6)
    loss = lambda j, at: 1 + ((maps[j] @ at) ** 2).sum()  # noqa: E731
    gradients = [2 * a.T @ a @ theta for a in maps]
    losses = [loss(j, theta) for j in range(3)]
    lr = 1e-7
    exact = np.array(
        [[(1 - loss(j, theta - lr * (g + decay * theta)) / losses[j]) / lr for j in range(3)] for g in gradients]
    )
    found = first_order_affinity(gram(gradients), losses, weight_decay_terms(theta, gradients, decay))
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


def test_first_order_without_labels_is_not_finite():
    values = first_order_affinity(np.eye(2), [1.0, 0.0])
    assert np.isfinite(values[:, 0]).all()
    assert not np.isfinite(values[:, 1]).any()
