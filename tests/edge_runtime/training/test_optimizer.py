import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training import optimizer
from edge_runtime.training.optimizer import BLOCK, Sgd, look_ahead

RATES = st.floats(0, 1, width=32)


def vectors(size, seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(size).astype(np.float32) for _ in range(3)]


def plainly(weights, gradient, velocity, sgd):
    lr, momentum, decay = (np.float32(v) for v in (sgd.lr, sgd.momentum, sgd.weight_decay))
    velocity = momentum * velocity + (gradient + decay * weights)
    return weights - lr * velocity, velocity


@given(lr=RATES, momentum=RATES, decay=RATES, size=st.integers(1, 40), seed=st.integers(0, 100))
def test_sgd_is_the_plain_formula(lr, momentum, decay, size, seed):
    sgd = Sgd(lr=lr, momentum=momentum, weight_decay=decay)
    weights, gradient, velocity = vectors(size, seed)
    expected = plainly(weights, gradient, velocity, sgd)
    sgd.step(weights, gradient, velocity)
    np.testing.assert_array_equal(weights, expected[0])
    np.testing.assert_array_equal(velocity, expected[1])


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_sgd_does_not_depend_on_where_blocks_end(size):
    sgd = Sgd(lr=0.1, momentum=0.9, weight_decay=0.01)
    weights, gradient, velocity = vectors(size)
    expected = plainly(weights, gradient, velocity, sgd)
    sgd.step(weights, gradient, velocity)
    np.testing.assert_array_equal(weights, expected[0])
    np.testing.assert_array_equal(velocity, expected[1])
    assert optimizer.BLOCK == BLOCK


def test_sgd_of_parts_is_sgd_of_the_whole():
    """A vector in which two models lie side by side: neither knows of the other."""
    sgd = Sgd(lr=0.1, momentum=0.9, weight_decay=0.01)
    whole, parts = vectors(1000), vectors(1000)
    sgd.step(*whole)
    for part in (slice(0, 300), slice(300, 1000)):
        sgd.step(*(vector[part] for vector in parts))
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[2], parts[2])


def test_look_ahead_writes_one_plain_step_and_nothing_else():
    weights, gradient, out = vectors(100)
    before = weights.copy(), gradient.copy()
    look_ahead(weights, gradient, lr=0.1, weight_decay=0.01, out=out)
    np.testing.assert_allclose(out, weights - 0.1 * (gradient + 0.01 * weights), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(weights, before[0])
    np.testing.assert_array_equal(gradient, before[1])
