import msgspec
import numpy as np
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training import optimizer
from edge_runtime.training.optimizer import BLOCK, AdamW, Sgd, look_ahead
from edge_runtime.wire.tensors import TensorTable, pack, unpack

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


@pytest.mark.parametrize("make", ["sgd", "adamw"])
def test_step_of_no_parts_leaves_all_weights(make):
    rule = Sgd(lr=0.1, momentum=0.9, weight_decay=0.1)
    if make == "adamw":
        rule = AdamW(lr=0.1, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.1)
    weights, gradient, _ = vectors(5)
    state, before = np.zeros(11 if make == "adamw" else 5, np.float32), weights.copy()
    rule.step(weights, gradient, state, ())
    assert weights.tobytes() == before.tobytes()


def test_look_ahead_writes_one_plain_step_and_nothing_else():
    weights, gradient, out = vectors(100)
    before = weights.copy(), gradient.copy()
    look_ahead(weights, gradient, lr=0.1, weight_decay=0.01, out=out)
    np.testing.assert_allclose(out, weights - 0.1 * (gradient + 0.01 * weights), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(weights, before[0])
    np.testing.assert_array_equal(gradient, before[1])


ADAMW = AdamW(lr=0.1, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01)


def test_adamw_is_pytorchs():
    """Three steps of torch.optim.AdamW with these settings."""
    weights, state = np.array([1.0, -2.0, 0.5], np.float32), np.zeros(7, np.float32)
    steps = [
        ([0.5, -1, 0.0], [0.8990000486373901, -1.8980000019073486, 0.49950000643730164]),
        ([0.25, 2, 1e-3], [0.8048830628395081, -1.932712435722351, 0.4245879054069519]),
        ([-1, 0.5, 0.2], [0.8247138857841492, -1.9723447561264038, 0.3599953055381775]),
    ]
    for gradient, expected in steps:
        ADAMW.step(weights, np.array(gradient, np.float32), state)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert state[-1] == 3


@given(
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.9999),
    decay=st.floats(0, 1),
    size=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_adamw_is_the_plain_formula(beta1, beta2, decay, size, seed):
    adamw = AdamW(lr=0.01, beta1=beta1, beta2=beta2, epsilon=1e-6, weight_decay=decay)
    weights, *gradients = vectors(size, seed)
    w, m, v, state = weights.astype(np.float64), np.zeros(size), np.zeros(size), np.zeros(2 * size + 1, np.float32)
    for t, gradient in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient.astype(np.float64) ** 2
        w -= 0.01 * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + 1e-6) + decay * w)
        adamw.step(weights, gradient, state)
    np.testing.assert_allclose(weights, w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state[:size], m, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state[size:-1], v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_adamw_does_not_depend_on_where_blocks_end(size):
    weights, gradient, _ = vectors(size)
    apart, state = [], np.zeros(2 * size + 1, np.float32)
    for i in (0, size // 2, size - 1):
        one = np.zeros(3, np.float32)
        w, g = weights[i : i + 1].copy(), gradient[i : i + 1].copy()
        for _ in range(2):
            ADAMW.step(w, g.copy(), one)
        apart.append((w[0], one[0], one[1]))
    for _ in range(2):
        ADAMW.step(weights, gradient.copy(), state)
    for i, (w, m, v) in zip((0, size // 2, size - 1), apart, strict=True):
        assert (weights[i], state[i], state[size + i]) == (w, m, v)


def test_adamw_without_a_gradient_only_decays():
    weights, state = np.ones(3, np.float32), np.zeros(7, np.float32)
    ADAMW.step(weights, np.zeros(3, np.float32), state)
    np.testing.assert_allclose(weights, 0.999)


def test_state_is_a_vector_that_is_kept_as_weights_are():
    table = TensorTable.of({"encoder.w": (2, 3), "head.a.w": (4,)})
    assert Sgd(lr=1, momentum=0, weight_decay=0).table(table) is table
    layout = ADAMW.table(table)
    assert layout.size == 2 * table.size + 1
    state = np.arange(layout.size, dtype=np.float32)
    np.testing.assert_array_equal(unpack(layout, pack(layout, state)), state)
    views = layout.views(state)
    for name, view in table.views(np.arange(table.size, dtype=np.float32)).items():
        np.testing.assert_array_equal(views[f"first.{name}"], view)
        np.testing.assert_array_equal(views[f"second.{name}"], view + table.size)
    assert views["steps"] == [layout.size - 1]


def test_optimizer_that_a_plan_asks_for():
    plain = samples.training(momentum=0.8, weight_decay=0.01)
    assert optimizer.make_optimizer(plain) == Sgd(lr=0.1, momentum=0.8, weight_decay=0.01)
    other = msgspec.structs.replace(plain, optimizer="adamw", beta2=0.99, epsilon=1e-6)
    assert optimizer.make_optimizer(other) == AdamW(lr=0.1, beta1=0.8, beta2=0.99, epsilon=1e-6, weight_decay=0.01)
