import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.aggregation.server_optimizer import ServerOptimizer


def vectors(number, size=5, seed=0):
    return np.random.default_rng(seed).standard_normal((number, size)).astype(np.float32)


@given(st.integers(0, 100))
def test_plain_step_with_the_mean_change_is_federated_averaging(seed):
    start, *ends = vectors(4, seed=seed)
    change = np.mean([start - end for end in ends], axis=0)
    new, _ = ServerOptimizer().step(start, change, np.zeros(0, np.float32))
    np.testing.assert_allclose(new, np.mean(ends, axis=0), atol=1e-6)


def test_step_without_momentum_keeps_no_state():
    optimizer = ServerOptimizer(lr=0.5)
    assert optimizer.state_size(5) == 0
    new, state = optimizer.step(np.ones(5, np.float32), np.ones(5, np.float32), np.zeros(0, np.float32))
    np.testing.assert_array_equal(new, np.full(5, 0.5))
    assert state.shape == (0,)


def test_plain_is_the_change_itself_as_the_step():
    assert ServerOptimizer().is_plain
    others = ServerOptimizer(lr=0.5), ServerOptimizer(momentum=0.5), ServerOptimizer(method="adam")
    assert not any(optimizer.is_plain for optimizer in others)


def test_momentum_by_hand():
    optimizer = ServerOptimizer(lr=0.5, momentum=0.5)
    weights, state = np.array([1.0], np.float32), np.zeros(optimizer.state_size(1), np.float32)
    for expected in (0.0, -1.5, -3.25):  # v is 2, 3, 3.5
        weights, state = optimizer.step(weights, np.array([2.0], np.float32), state)
        assert weights == pytest.approx(expected)
        assert weights.dtype == state.dtype == np.float32


def test_adam_by_hand():
    optimizer = ServerOptimizer(method="adam", lr=0.1, momentum=0.5, beta2=0.75, tau=1e-3)
    weights, state = np.zeros(1, np.float32), np.zeros(optimizer.state_size(1), np.float32)
    weights, state = optimizer.step(weights, np.array([4.0], np.float32), state)
    np.testing.assert_allclose(state, [2.0, 4.0])
    assert weights == pytest.approx(-0.1 * 2 / (2 + 1e-3))
    weights, state = optimizer.step(weights, np.array([0.0], np.float32), state)
    np.testing.assert_allclose(state, [1.0, 3.0])
    assert weights == pytest.approx(-0.1 * (2 / (2 + 1e-3) + 1 / (3**0.5 + 1e-3)))


def test_step_leaves_what_it_was_given():
    weights, change = vectors(2)
    before = weights.copy(), change.copy()
    ServerOptimizer(momentum=0.9).step(weights, change, np.zeros(5, np.float32))
    np.testing.assert_array_equal([weights, change], before)


@pytest.mark.parametrize("keys", [{"lr": 0}, {"momentum": 1.0}, {"method": "lamb"}, {"tau": 0}])
def test_settings_that_make_no_sense_are_refused(keys):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(keys, ServerOptimizer)
