import numpy as np
import pytest
from family import VALUES, X, by_task, golden

from broker_server.aggregation.proximal_maps import leading_pair, proximal, value
from edge_runtime.linear.gradient import gradient, smoothness
from edge_runtime.linear.losses import LOSSES

GOLDEN = golden("amtl")
LOSS = LOSSES["half_squared"]
WEIGHTS = {"trace": 1.0, "l21": 1.0, "mean": 2.0}
"""The golden optima's λ in these regularisers."""


def stepped(regulariser, ridge, w, eta):
    g = np.array([gradient(x, y, row, LOSS) for x, y, row in zip(X, VALUES, w, strict=True)])
    return proximal(regulariser, w - eta * g, eta * ridge)


def objective(regulariser, ridge, w):
    losses = (LOSS.value(x @ row, y).sum() for x, y, row in zip(X, VALUES, w, strict=True))
    return sum(losses) + ridge * value(regulariser, w)


def test_smoothness_is_the_golden_one():
    assert max(smoothness(x, LOSS) for x in X) == pytest.approx(GOLDEN["L"], abs=1e-9)
    assert smoothness(X[3][:2], LOSS) == pytest.approx(np.linalg.svd(X[3][:2], compute_uv=False)[0] ** 2)


def test_synchronous_steps_follow_the_golden_rounds():
    w = np.zeros((4, 5))
    for number in range(1, 21):
        w = stepped("trace", 1.0, w, GOLDEN["eta"])
        if (found := GOLDEN["synchronous_proximal_gradient"].get(str(number))) is not None:
            np.testing.assert_allclose(w, by_task(found["W"]), atol=1e-8)
            assert objective("trace", 1.0, w) == pytest.approx(found["objective"], abs=1e-8)


@pytest.mark.parametrize("regulariser", [*WEIGHTS])
def test_steps_end_at_the_optimum_of_another_solver(regulariser):
    w, found = np.zeros((4, 5)), GOLDEN["optimum"][regulariser]
    for _ in range(2000):
        w = stepped(regulariser, WEIGHTS[regulariser], w, GOLDEN["eta"])
    np.testing.assert_allclose(w, by_task(found["W"]), atol=1e-6)
    assert objective(regulariser, WEIGHTS[regulariser], w) == pytest.approx(found["objective"], abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_leading_pair_is_that_of_the_decomposition(shape):
    a = np.random.default_rng(2).normal(size=shape)
    left, right = leading_pair(a)
    u, s, v = np.linalg.svd(a)
    np.testing.assert_allclose(np.outer(left, right), np.outer(u[:, 0], v[0]), atol=1e-9)
    assert left @ a @ right == pytest.approx(s[0])
    assert not leading_pair(np.zeros(shape))[0 if shape[0] > shape[1] else 1].any()


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
@pytest.mark.parametrize("regulariser", ["trace", "l21", "l1", "mean"])
def test_a_proximal_map_is_no_worse_than_what_is_near(regulariser, shape):
    rng = np.random.default_rng(5)
    v = rng.normal(size=shape)
    v[0] = 0.0

    def worth(w):
        return 0.5 * np.sum((w - v) ** 2) + 0.7 * value(regulariser, w)

    best = proximal(regulariser, v, 0.7)
    assert all(worth(best) <= worth(best + 0.01 * rng.normal(size=shape)) for _ in range(50))
    np.testing.assert_allclose(proximal(regulariser, v, 0.0), v, atol=1e-12)
