from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.aggregation.priors import (
    TaskCovariance,
    TensorNormal,
    fitted,
    flip_flop,
    precise,
    task_covariance,
)
from edge_runtime.wire.tensors import TensorTable

FAMILY = Path(__file__).parents[2] / "fixtures" / "family"
GOLDEN = msgspec.json.decode((FAMILY / "architectures.json").read_bytes())["tensor_normal"]
TABLE = TensorTable.of({"head.a.b": (2,), "head.a.w": (2, 3), "head.b.s": ()})


def weights(devices=4):
    return np.random.default_rng(3).standard_normal((devices, TABLE.size))


def test_tensor_normal_has_the_golden_covariances_penalty_and_gradient():
    given = np.array(GOLDEN["W"])
    sides = tuple(np.eye(size) / size for size in given.shape)
    for expected in GOLDEN["updates_simultaneous"]:
        sides = flip_flop(given, *sides)
        for side, name in zip(sides, ("task", "out", "feature"), strict=True):
            np.testing.assert_allclose(side, expected[name], atol=1e-8)
    assert float(np.sum(given * precise(given, *sides))) == pytest.approx(GOLDEN["penalty"], rel=1e-8)
    np.testing.assert_allclose(2 * precise(given, *sides), GOLDEN["gradient_of_penalty"], rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(np.array(fitted(given)[0]), sides[0])  # three sweeps


def test_covariance_of_tasks_is_the_root_of_the_inner_products():
    w = weights()
    sigma = task_covariance(w @ w.T, floor=0.0)
    scale = np.trace(w @ w.T @ np.linalg.inv(sigma)) / np.trace(sigma)  # Σ² is WWᵀ but for the scale
    np.testing.assert_allclose(sigma @ sigma * scale, w @ w.T, rtol=1e-8)
    assert np.trace(sigma) == pytest.approx(1.0)
    np.testing.assert_array_equal(task_covariance(np.zeros((3, 3))), np.eye(3) / 3)


def test_a_pull_of_a_covariance_is_the_penaltys_gradient_and_curvature():
    """λ/2 · tr(Ω W Wᵀ) with all others as they are: its gradient for w_t is λ (Ω W)_t, its curvature λ Ω_tt."""
    w = weights()
    centres, strengths = TaskCovariance(strength=0.3).pulls(w, TABLE)
    precision = np.linalg.inv(task_covariance(w @ w.T))
    np.testing.assert_allclose(strengths, 0.3 * precision.diagonal(), rtol=1e-10)
    np.testing.assert_allclose(strengths[:, None] * (w - centres), 0.3 * precision @ w, rtol=1e-8)


def test_a_pull_of_a_tensor_normal_prior_is_the_penaltys_gradient():
    w = weights()
    centres, strengths = TensorNormal(strength=0.01).pulls(w, TABLE)
    pull = strengths[:, None] * (w - centres)
    views = {tensor.name: slice(tensor.offset, tensor.offset + tensor.size) for tensor in TABLE.tensors}
    for name, shape in (("head.a.w", (4, 2, 3)), ("head.a.b", (4, 2, 1)), ("head.b.s", (4, 1, 1))):
        sides = w[:, views[name]].reshape(shape)
        expected = 0.01 * precise(sides, *fitted(sides)).reshape(4, -1)
        np.testing.assert_allclose(pull[:, views[name]], expected, rtol=1e-9)
