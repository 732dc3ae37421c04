import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.parity.branch_decisions import deciding_values, with_outputs  # noqa: E402
from export.parity.check import SEED, outputs  # noqa: E402
from export.parity.replay import replayed  # noqa: E402

pytestmark = pytest.mark.workstation


@pytest.fixture
def pooled(make):
    """A ReLU and a pool that keeps where its maxima were."""
    return compile_model(
        make(
            encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            example_targets={"a": torch.rand(2, 1, 4, 4), "b": torch.rand(2, 2, 4, 4)},
        )
    )


def calls_of(compiled, run):
    """Inputs and outputs of every graph on the example batch."""
    calls = {}

    def call(name, inputs):
        calls[name] = inputs, run(compiled.graphs[name], inputs)
        return calls[name][1]

    outputs(compiled, call, compiled.model.inputs)
    return calls


def test_graph_tells_what_it_decides_by_and_computes_the_same(pooled, run):
    name = "encoder.0.backward"
    inputs, results = calls_of(pooled, run)[name]
    names = deciding_values(pooled.lowered[name])
    told = run(with_outputs(pooled.graphs[name], names), inputs)
    assert names
    assert set(names.values()) <= told.keys()
    for key, value in results.items():
        np.testing.assert_array_equal(told[key], value)


def test_replayed_operators_give_what_the_graph_gives(pooled, run):
    for name, (inputs, results) in calls_of(pooled, run).items():
        graph = pooled.lowered[name]
        found, _ = replayed(graph, inputs, {})
        exact, _ = replayed(graph, inputs, {}, torch.float64)
        assert found.keys() == results.keys()
        for key, value in found.items():
            np.testing.assert_allclose(results[key], value, rtol=1e-3, atol=1e-6, err_msg=f"{name} {key}")
            assert exact[key].dtype in (np.float64, np.int64)
            np.testing.assert_allclose(exact[key], value, rtol=1e-3, atol=1e-6)


def test_replayed_operators_decide_as_they_are_told(pooled, run):
    name = "encoder.0.backward"
    inputs, _ = calls_of(pooled, run)[name]
    graph = pooled.lowered[name]
    nothing = np.zeros((2, 4, 8, 8), np.float32)
    _, own = replayed(graph, inputs, dict.fromkeys(deciding_values(graph).values(), nothing))
    dead, _ = replayed(graph, inputs, {key: np.zeros_like(value) for key, value in own.items()})
    alive, _ = replayed(graph, inputs, own)
    assert not dead["grad.0.bias"].any()
    assert alive["grad.0.bias"].any()


def test_replayed_dropout_draws_what_the_graph_draws(make, run):
    compiled = compile_model(make(encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5))))
    inputs, results = calls_of(compiled, run)["encoder.0.forward"]
    assert inputs["seed"] == SEED
    found, _ = replayed(compiled.lowered["encoder.0.forward"], inputs, {})
    np.testing.assert_array_equal(found["z.0"] == 0, results["z.0"] == 0)
