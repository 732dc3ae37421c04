import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training.weighting import LEAST_WEIGHT, FixedWeights, GradNorm, Uncertainty, make_weighting
from edge_runtime.training.weighting_state import WeightingState
from edge_runtime.wire.training import FixedWeighting, GradNormWeighting, UncertaintyWeighting

TASKS = ("a", "b", "c")
POSITIVE = st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3).map(np.array)
NAN = float("nan")


def row(*values):
    return np.array(values, np.float64)


def test_fixed_weights_are_one_where_a_task_is_not_named():
    fixed = make_weighting(TASKS, FixedWeighting(weights={"b": 2.5, "c": 0.0, "z": 9.0}))
    assert isinstance(fixed, FixedWeights)
    fixed.update(row(1, 2, 3), row(1, 2, 3))
    np.testing.assert_array_equal(fixed.weights, [1.0, 2.5, 0.0])
    assert fixed.state is None
    assert not fixed.needs_norms


def test_without_a_weighting_every_task_counts_the_same():
    np.testing.assert_array_equal(make_weighting(TASKS, None).weights, [1, 1, 1])


def test_gradnorm_by_hand():
    """L(0) = (1, 2), then L = (1, 1): r = (1, 0.5)/0.75, norms (1, 3), w = 1: G = (1, 3), mean 2, alpha 1.

    Targets 2·4/3 and 2·2/3: task a is below (−1), b above (+1). Steps 0.1·1/2 and 0.1·3/2: 1.05 and 0.85, scaled to 2.
    """
    gradnorm = GradNorm(("a", "b"), GradNormWeighting(alpha=1.0, lr=0.1), None)
    gradnorm.update(row(1, 2), row(0, 0))  # no gradient anywhere: the first losses alone
    np.testing.assert_array_equal(gradnorm.weights, [1, 1])
    gradnorm.update(row(1, 1), row(1, 3))
    np.testing.assert_allclose(gradnorm.weights, np.array([1.05, 0.85]) * 2 / 1.9)
    assert gradnorm.needs_norms


def test_gradnorm_balances_the_norms():
    """Alpha 0 asks for equal gradients: with norms that stay, the weights go where all w_i · n_i are the same."""
    norms = row(1, 2, 4)
    gradnorm = GradNorm(TASKS, GradNormWeighting(alpha=0.0, lr=0.01), None)
    for _ in range(2000):
        gradnorm.update(row(1, 1, 1), norms)
    balanced = 3 / norms / (1 / norms).sum()
    np.testing.assert_allclose(gradnorm.weights, balanced, rtol=0.06)


def test_gradnorm_raises_the_weight_of_a_task_that_learns_slowly():
    gradnorm = GradNorm(("fast", "slow"), GradNormWeighting(), None)
    gradnorm.update(row(1, 1), row(1, 1))
    for _ in range(5):
        gradnorm.update(row(0.2, 0.9), row(1, 1))
    assert gradnorm.weights[1] > 1.1 > 0.9 > gradnorm.weights[0]


@given(losses=st.lists(POSITIVE, min_size=1, max_size=8), norms=POSITIVE)
def test_gradnorm_keeps_the_sum(losses, norms):
    gradnorm = GradNorm(TASKS, GradNormWeighting(), None)
    for loss in losses:
        gradnorm.update(loss, norms)
        assert gradnorm.weights.sum() == pytest.approx(3)
        assert gradnorm.weights.min() >= LEAST_WEIGHT / 1000


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_gradnorm_does_not_see_the_scale_of_the_losses(scale):
    one, other = (GradNorm(TASKS, GradNormWeighting(), None) for _ in range(2))
    for losses in (row(1, 2, 3), row(0.9, 1.9, 1.5), row(0.7, 1.6, 1.4)):
        one.update(losses, row(1, 2, 5))
        other.update(losses * scale, row(1, 2, 5) * scale)
    np.testing.assert_allclose(other.weights, one.weights)


def test_gradnorm_leaves_a_task_without_labels_where_it_is():
    gradnorm = GradNorm(TASKS, GradNormWeighting(lr=0.1), None)
    gradnorm.update(row(1, 1, NAN), row(1, 3, NAN))
    assert gradnorm.weights[0] > gradnorm.weights[2] > gradnorm.weights[1]
    assert gradnorm.weights.sum() == pytest.approx(3)
    assert gradnorm.state.first_losses == {"a": 1.0, "b": 1.0}
    gradnorm.update(row(NAN, NAN, 5), row(NAN, NAN, 1))  # one task alone: nothing to compare with
    assert gradnorm.state.first_losses == {"a": 1.0, "b": 1.0, "c": 5.0}


@pytest.mark.parametrize("losses", [row(0, 0, 0), row(NAN, NAN, NAN)])
def test_gradnorm_without_losses_changes_nothing(losses):
    gradnorm = GradNorm(TASKS, GradNormWeighting(), None)
    gradnorm.update(row(1, 1, 1), row(0, 0, 0))
    gradnorm.update(losses, row(1, 2, 3))
    np.testing.assert_array_equal(gradnorm.weights, [1, 1, 1])


def test_gradnorm_cannot_lose_a_task():
    gradnorm = GradNorm(("a", "b"), GradNormWeighting(lr=10.0), None)
    for _ in range(20):
        gradnorm.update(row(1, 1), row(1, 1000))
        assert (gradnorm.weights > 0).all()
        assert np.isfinite(gradnorm.weights).all()


@pytest.mark.slow
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=6), st.sampled_from(["gradnorm", "uncertainty"]))
def test_weighting_goes_on_from_its_state_as_if_it_had_not_stopped(steps, method):
    settings = {"gradnorm": GradNormWeighting(), "uncertainty": UncertaintyWeighting()}[method]
    whole, part = make_weighting(TASKS, settings), make_weighting(TASKS, settings)
    for losses, norms in steps:
        whole.update(losses, norms)
        part.update(losses, norms)
        part = make_weighting(TASKS, settings, part.state)
        np.testing.assert_array_equal(part.weights, whole.weights)


@pytest.mark.parametrize("settings", [GradNormWeighting(), UncertaintyWeighting()])
@pytest.mark.parametrize(
    "state",
    [
        WeightingState(method="other", values={"a": 2.0, "b": 2.0, "c": 2.0}),
        WeightingState(method="gradnorm", values={"a": 2.0}),
        WeightingState(method="uncertainty", values={"a": 2.0, "b": 2.0, "d": 2.0}),
    ],
)
def test_weighting_does_not_go_on_from_another_method_or_other_tasks(settings, state):
    np.testing.assert_array_equal(make_weighting(TASKS, settings, state).weights, [1, 1, 1])


def test_uncertainty_by_hand():
    """s = 0: the slope is 1 − L, so a loss of 3 lowers the weight and one of 0.5 raises it."""
    uncertainty = make_weighting(TASKS, UncertaintyWeighting(lr=0.1))
    assert isinstance(uncertainty, Uncertainty)
    uncertainty.update(row(3, 0.5, NAN), row(NAN, NAN, NAN))
    np.testing.assert_allclose(uncertainty.weights, np.exp([-0.2, 0.05, 0.0]))
    assert not uncertainty.needs_norms


def test_uncertainty_finds_the_minimum():
    """exp(−s)·L + s is least at s = ln L, where the weight is 1 / L."""
    uncertainty = Uncertainty(TASKS, UncertaintyWeighting(lr=0.1), None)
    for _ in range(500):
        uncertainty.update(row(0.25, 1, 4), row(1, 1, 1))
    np.testing.assert_allclose(uncertainty.weights, [4, 1, 0.25], rtol=1e-3)


def test_uncertainty_stays_finite():
    uncertainty = Uncertainty(("a",), UncertaintyWeighting(lr=10.0), None)
    for loss in (1e18, 1e18, 1e-9, 1e-9, 0.0, 1e18):
        uncertainty.update(row(loss), row(0))
        assert 0 < uncertainty.weights[0] < 1e5
