import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training.gradient import add_proximal, clip, norm_of
from edge_runtime.training.optimizer import BLOCK

SIZES = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5]


def vector(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_proximal_term_is_the_plain_formula(size):
    gradient, weights, received = (vector(size, seed) for seed in range(3))
    expected = gradient + np.float32(0.1) * (weights - received)
    add_proximal(gradient, weights, received, 0.1)
    np.testing.assert_array_equal(gradient, expected)


def test_proximal_term_is_the_gradient_of_the_squared_distance():
    """mu/2 · ‖w − w_received‖², by central differences."""
    weights, received = vector(5, 1).astype(np.float64), vector(5, 2).astype(np.float64)
    term = lambda w: 0.3 / 2 * ((w - received) ** 2).sum()  # noqa: E731
    slopes = [(term(weights + 1e-4 * unit) - term(weights - 1e-4 * unit)) / 2e-4 for unit in np.eye(5)]
    gradient = np.zeros(5, np.float32)
    add_proximal(gradient, weights.astype(np.float32), received.astype(np.float32), 0.3)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4)


def test_proximal_term_is_nothing_where_training_begins():
    gradient, weights = vector(100, 0), vector(100, 1)
    before = gradient.copy()
    add_proximal(gradient, weights, weights.copy(), 1.0)
    np.testing.assert_array_equal(gradient, before)


@given(st.integers(1, 200), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clip_leaves_the_direction_and_bounds_the_norm(size, scale, largest):
    gradient = vector(size, size) * np.float32(scale)
    before = gradient.copy()
    norm = clip(gradient, largest)
    assert norm == pytest.approx(np.linalg.norm(before.astype(np.float64)), rel=1e-6)
    if norm <= largest:
        np.testing.assert_array_equal(gradient, before)
    else:
        assert norm_of(gradient) == pytest.approx(largest, rel=1e-5)
        np.testing.assert_allclose(gradient * norm, before * largest, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_norm_does_not_depend_on_where_blocks_end(size):
    gradient = vector(size)
    assert norm_of(gradient) == pytest.approx(np.sqrt((gradient.astype(np.float64) ** 2).sum()), rel=1e-12)


def test_norm_of_what_float32_cannot_square():
    assert norm_of(np.full(4, 1e30, np.float32)) == pytest.approx(2e30)


def test_clip_does_not_hide_that_training_diverged():
    gradient = np.array([1.0, np.nan], np.float32)
    assert np.isnan(clip(gradient, 1.0))
    assert np.isnan(gradient[1])
    gradient = np.array([1.0, np.inf], np.float32)
    clip(gradient, 1.0)
    assert not np.isfinite(gradient).all()
