import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.training.probe import AffinityStatistics, Probe, relative_gain
from edge_runtime.training.schedule import order
from edge_runtime.training.trainer import load

VALUES = st.floats(-100, 100, allow_subnormal=False)


def first_batch(tiny, model):
    return load(model, tiny.dataset.train, order(tiny.settings.seed, 0, 10)[:4].tolist())


def probed(tiny, model, method="exact", lr=None):
    x, targets = first_batch(tiny, model)
    done = model.forward(x)
    z = done.z
    losses, kept = {}, {}
    for task in model.tasks:
        kept[task] = tuple(map(np.empty_like, z))
        losses[task] = model.step(task, z, targets[task], kept[task])
    probe = Probe(method=method, lr=lr or tiny.probe_lr, weight_decay=tiny.settings.weight_decay)
    return probe.measure(model, done, targets, losses, kept)


def test_probe_is_what_pytorch_gives_by_definition(tiny):
    values = probed(tiny, tiny.model())
    assert np.abs(values).min() > 1e-4
    np.testing.assert_allclose(values, tiny.reference["affinity"], atol=1e-5)


def test_probe_changes_no_parameter(tiny):
    model = tiny.model()
    probed(tiny, model)
    np.testing.assert_array_equal(model.weights, tiny.weights)


def test_probe_of_one_task_alone_is_the_entry_of_all(tiny):
    values = probed(tiny, tiny.model("normals"))
    np.testing.assert_allclose(values, tiny.reference["affinity"][1:2, 1:2], atol=1e-5)


def gradients_of(tiny, model):
    """∂L_i/∂z and the encoder's gradient of each task, and the losses, of the first batch."""
    x, targets = first_batch(tiny, model)
    done = model.forward(x)
    z = done.z
    dz = {task: tuple(map(np.empty_like, z)) for task in model.tasks}
    losses = [model.step(task, z, targets[task], dz[task]) for task in model.tasks]
    return dz, [model.backward(done, dz[task]).astype(np.float64) for task in model.tasks], np.array(losses)


def test_first_order_of_the_encoder_is_its_definition(tiny):
    model = tiny.model()
    _, gradients, losses = gradients_of(tiny, model)
    theta = model.weights[model.encoder].astype(np.float64)
    expected = [[(g + 0.01 * theta) @ h / loss for h, loss in zip(gradients, losses, strict=True)] for g in gradients]
    np.testing.assert_allclose(probed(tiny, model, "encoder"), expected, rtol=1e-5)


def test_first_order_of_the_representation_is_its_definition(tiny):
    model = tiny.model()
    dz, _, losses = gradients_of(tiny, model)
    flat = [np.concatenate([array.ravel() for array in dz[task]]).astype(np.float64) for task in model.tasks]
    expected = [[g @ h / loss for h, loss in zip(flat, losses, strict=True)] for g in flat]
    np.testing.assert_allclose(probed(tiny, model, "representation"), expected, rtol=1e-5)


def test_first_order_is_what_the_look_ahead_tends_to(tiny):
    """Half the step, half the error: the affinity of a step of 0.5 is off by the second order."""
    model = tiny.model()
    first = probed(tiny, model, "encoder")
    errors = [np.abs(probed(tiny, model, lr=lr) - first).max() for lr in (0.5, 0.25)]
    assert 1.5 < errors[0] / errors[1] < 3
    assert errors[1] < 0.2 * np.abs(first).max()


@pytest.mark.parametrize("method", ["encoder", "representation"])
def test_first_order_changes_no_parameter(tiny, method):
    model = tiny.model()
    probed(tiny, model, method)
    np.testing.assert_array_equal(model.weights, tiny.weights)


def test_relative_gain_is_positive_where_the_loss_fell():
    assert relative_gain(2.0, 1.0, 0.1) == pytest.approx(5.0)
    assert relative_gain(2.0, 3.0, 0.1) == pytest.approx(-5.0)
    assert np.isnan(relative_gain(0.0, 1.0, 0.1))


@given(arrays.arrays(np.float64, st.tuples(st.integers(2, 12), st.just(3), st.just(3)), elements=VALUES))
def test_statistics_are_the_mean_and_the_sample_variance(values):
    statistics = AffinityStatistics(("a", "b", "c"))
    for matrix in values:
        statistics.add(matrix)
    result = statistics.result()
    assert result.tasks == ("a", "b", "c")
    assert result.count == len(values)
    np.testing.assert_allclose(result.mean, values.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.variance, values.var(axis=0, ddof=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_statistics_leave_out_a_batch_that_is_not_finite(odd):
    statistics = AffinityStatistics(("a", "b"))
    assert statistics.result() is None
    statistics.add(np.array([[1.0, odd], [3.0, 4.0]]))
    assert statistics.result() is None
    statistics.add(np.array([[1.0, -2.0], [3.0, 4.0]]))
    result = statistics.result()
    assert (result.count, result.mean, result.variance) == (1, ((1.0, -2.0), (3.0, 4.0)), None)
