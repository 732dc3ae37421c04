import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.training.probe import AffinityStatistics, probe, relative_gain
from edge_runtime.training.schedule import order
from edge_runtime.training.trainer import load

VALUES = st.floats(-100, 100, allow_subnormal=False)


def first_batch(tiny, model):
    return load(model, tiny.dataset.train, order(tiny.settings.seed, 0, 10)[:4].tolist())


def probed(tiny, model):
    x, targets = first_batch(tiny, model)
    done = model.forward(x)
    z = done.z
    losses, kept = {}, {}
    for task in model.tasks:
        kept[task] = tuple(map(np.empty_like, z))
        losses[task] = model.step(task, z, targets[task], kept[task])
    return probe(model, done, targets, losses, kept, lr=tiny.probe_lr, weight_decay=tiny.settings.weight_decay)


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
