"""The second engine, without onnxruntime-training: how it binds a training model, and what it says where it cannot."""

import msgspec
import numpy as np
import pytest

from edge_runtime.training.engine import is_training_build
from edge_runtime.training.ort_training_engine import (
    OrtTrainingCache,
    OrtTrainingStep,
    OrtTrainingUnavailable,
    artifacts_of,
    check_installed,
)
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.graph_names import graph_names
from edge_runtime.wire.tensors import Tensor

FILE = wire.File(digest="0" * 64, size_bytes=1)
ARRAY = wire.Array(shape=(2,), dtype="float32")
ARTIFACTS = wire.Artifacts(
    training_model=FILE, eval_model=FILE, optimizer_model=FILE, checkpoint=FILE, max_relative_error=0.0
)


def manifest(official=None, *, state=False):
    more = (Tensor(name="state.encoder.mean", shape=(2,), offset=4),) if state else ()
    return wire.Manifest(
        format=2,
        name="two",
        tasks=tuple(wire.Task(name=name, target=ARRAY, prediction=ARRAY) for name in ("a", "b")),
        input=ARRAY,
        representation=(ARRAY,),
        values=(),
        stages=(wire.Stage(reads=("x",), writes=("z.0",), parameters=("w",)),),
        tensors=(
            Tensor(name="encoder.w", shape=(2,), offset=0),
            Tensor(name="head.a.w", shape=(), offset=2),
            Tensor(name="head.b.w", shape=(), offset=3),
            *more,
        ),
        graphs=dict.fromkeys(graph_names(("a", "b"), 1), FILE),
        weights=FILE,
        opset=18,
        parity=wire.Parity(max_relative_error=0.0, worst="", compared=0),
        versions={},
        ort_training=official,
    )


class TrainingModel:
    """Adds one to every parameter for its gradient, and says loss 1 and 2."""

    inputs = frozenset(f"{name}_grad.accumulation.buffer" for name in ("encoder.w", "head.a.w", "head.b.w"))

    def run(self, inputs, outputs):
        assert inputs["lazy_reset_grad"].all()
        self.weights = inputs["loss_weights"].tolist()
        for name in ("encoder.w", "head.a.w", "head.b.w"):
            inputs[f"{name}_grad.accumulation.buffer"][...] = inputs[name] + 1
            assert outputs[f"{name}_grad.accumulation.out"].dtype == np.bool_
        outputs["loss.a"][...], outputs["loss.b"][...] = 1.0, inputs["target.b"].sum()


def test_step_writes_gradients_into_the_vector_and_returns_losses():
    x, targets = np.zeros((1, 2), np.float32), {"a": np.zeros((1, 2)), "b": np.ones((1, 2))}
    weights, gradient = np.arange(4, dtype=np.float32), np.full(4, 9, np.float32)
    model = TrainingModel()
    step = OrtTrainingStep(model, manifest())
    vectors = {"weights": weights, "gradient": gradient, "next_state": np.zeros(4, np.float32), "seeds": {}}
    assert step({"x": x}, targets, **vectors) == {"a": 1.0, "b": 2.0}
    assert gradient.tolist() == [1, 2, 3, 4]
    assert model.weights == [1.0, 1.0]
    step({"x": x}, targets, **vectors, loss_weights=np.array([0.5, 2.0]))
    assert model.weights == [0.5, 2.0]


class StatefulModel:
    """Trains the encoder alone, moves its state by one and puts its seed into the loss."""

    inputs = frozenset({"encoder.w_grad.accumulation.buffer"})

    def run(self, inputs, outputs):
        inputs["encoder.w_grad.accumulation.buffer"][...] = 7
        outputs["next.encoder.mean"][...] = inputs["state.encoder.mean"] + 1
        outputs["loss.a"][...] = outputs["loss.b"][...] = inputs["seed.encoder"]


def test_step_moves_state_draws_by_seed_and_leaves_the_gradient_of_what_has_no_effect_zero():
    x, targets = np.zeros((1, 2), np.float32), {"a": np.zeros((1, 2)), "b": np.ones((1, 2))}
    weights, gradient, next_state = np.arange(6, dtype=np.float32), np.full(4, 9, np.float32), np.zeros(6, np.float32)
    seeds = {"encoder": np.array(3), "head.a": np.array(4)}
    step = OrtTrainingStep(StatefulModel(), manifest(state=True))
    found = step({"x": x}, targets, weights=weights, gradient=gradient, next_state=next_state, seeds=seeds)
    assert found == {"a": 3.0, "b": 3.0}
    assert gradient.tolist() == [7, 7, 0, 0]
    assert weights.tolist() == [0, 1, 2, 3, 4, 5]
    assert next_state.tolist() == [0, 0, 0, 0, 5, 6]


def test_group_without_artifacts_is_refused_by_name():
    with pytest.raises(OrtTrainingUnavailable, match=r"no ONNX Runtime training artifacts for a\+b: .* --groups a,b"):
        artifacts_of(manifest())
    official = wire.OrtTrainingArtifacts(groups={"a": ARTIFACTS, "a+b": ARTIFACTS})
    assert artifacts_of(manifest(official)) is official.groups["a+b"]


@pytest.mark.skipif(is_training_build(), reason="onnxruntime-training is what is installed")
def test_stock_onnxruntime_is_refused_with_what_to_install():
    with pytest.raises(
        OrtTrainingUnavailable, match=r"needs onnxruntime-training 1\.19\.2, and onnxruntime .* is here"
    ):
        check_installed()
    with pytest.raises(OrtTrainingUnavailable):
        OrtTrainingCache(engine=None)


def test_group_of_a_manifest_keeps_its_own_artifacts_alone():
    own, other = ARTIFACTS, msgspec.structs.replace(ARTIFACTS, max_relative_error=1.0)
    whole = manifest(wire.OrtTrainingArtifacts(groups={"a": own, "a+b": other}, forward=FILE))
    assert whole.group(("a",), FILE).ort_training == wire.OrtTrainingArtifacts(groups={"a": own})
    assert whole.group(("b",), FILE).ort_training is None
    assert wire.decode(wire.encode(whole)) == whole
    assert b"official" not in wire.encode(manifest())


def test_device_needs_the_training_model_where_its_engine_is_the_official_one():
    model = wire.File(digest="1" * 64, size_bytes=7)
    whole = manifest(
        wire.OrtTrainingArtifacts(groups={"a+b": msgspec.structs.replace(ARTIFACTS, training_model=model)})
    )
    assert whole.needs() == {"0" * 64: 1}
    assert whole.needs(ort_training=True) == {"0" * 64: 1, "1" * 64: 7}
    assert manifest().needs(ort_training=True) == {"0" * 64: 1}
