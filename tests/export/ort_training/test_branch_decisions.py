import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.ort_training import branch_decisions  # noqa: E402
from export.parity.check import outputs  # noqa: E402

pytestmark = pytest.mark.workstation


@pytest.fixture
def pooled(make, run):
    """The encoder's backward graph of a ReLU and a pool, what it decides by, and its inputs on the example batch."""
    compiled = compile_model(
        make(
            encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            example_targets={"a": torch.rand(2, 1, 4, 4), "b": torch.rand(2, 2, 4, 4)},
        )
    )
    calls = {}

    def call(name, inputs):
        calls[name] = inputs
        return run(compiled.graphs[name], inputs)

    outputs(compiled, call, compiled.model.inputs)
    model = onnx.load_from_string(compiled.graphs["encoder.0.backward"])
    return model, branch_decisions.deciding_values(model.graph), calls["encoder.0.backward"]


def ran(run, model, inputs):
    return run(model.SerializeToString(), inputs)


def test_graph_puts_out_the_values_that_it_decides_by(pooled, run):
    model, names, inputs = pooled
    plain, decided = ran(run, model, inputs), ran(run, branch_decisions.with_outputs(model, names), inputs)
    assert decided.keys() == plain.keys() | set(names)
    assert any(np.issubdtype(decided[name].dtype, np.integer) for name in names)  # the places of maxima
    rectified = [decided[name] for name in names if decided[name].shape == (2, 4, 8, 8)]
    assert rectified
    for name, value in plain.items():
        np.testing.assert_allclose(decided[name], value, rtol=1e-5, atol=1e-6)


def test_graph_that_takes_decisions_follows_them(pooled, run):
    model, names, inputs = pooled
    decided = {name: ran(run, branch_decisions.with_outputs(model, names), inputs)[name] for name in names}
    taking = branch_decisions.with_inputs(model, decided)
    plain = ran(run, model, inputs)
    for values in (decided, branch_decisions.with_other_last_digits(decided)):
        for name, value in ran(run, taking, {**inputs, **branch_decisions.as_inputs(values)}).items():
            np.testing.assert_allclose(value, plain[name], rtol=1e-4, atol=1e-5)
    # All off: nothing passes the ReLU any more.
    off = {n: np.full_like(v, -1) if v.dtype == np.float32 else v for n, v in decided.items()}
    found = ran(run, taking, {**inputs, **branch_decisions.as_inputs(off)})
    assert not any(value.any() for value in found.values())


def test_nudged_values_are_others_that_decide_alike():
    values = {"a": np.array([0.0, -0.0, 1.0, -3.0, 1e-30], np.float32), "places": np.array([0, 7])}
    found = branch_decisions.with_other_last_digits(values)
    assert found["places"] is values["places"]
    np.testing.assert_array_equal(np.sign(found["a"]), np.sign(values["a"]))
    assert (found["a"] != values["a"]).sum() == 3
    np.testing.assert_allclose(found["a"], values["a"], rtol=3e-7)


def test_same_is_the_nearest_that_differs_by_rounding():
    random = np.random.default_rng(0)
    value = random.normal(size=(2, 3, 50)).astype(np.float32)
    near, nearer = value + np.float32(5e-5), value + np.float32(1e-6)
    assert branch_decisions.nearest_equal(value, [near, nearer, value[:1]]) is nearer
    assert (
        branch_decisions.nearest_equal(
            value, [value + np.float32(1e-2), value.reshape(3, 2, 50), value.astype(np.float64)]
        )
        is None
    )
    assert branch_decisions.nearest_equal(value, []) is None
    assert branch_decisions.nearest_equal(value[:0], [value[:0]]) is None
    places = np.arange(3000)
    moved = places.copy()
    moved[:2] = 7
    assert branch_decisions.nearest_equal(places, [places[::-1], moved]) is moved
    moved[:30] = 7
    assert branch_decisions.nearest_equal(places, [moved]) is None
