import msgspec
import numpy as np
import pytest

from edge_runtime.agent.limits import PlanLimits
from edge_runtime.datasets.feature_sets import linear_bundle
from edge_runtime.datasets.feature_sources import SOURCES
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.linear import DualSteps, GradientStep, MixedEffectPart, answer_bytes, answer_table
from edge_runtime.wire.manifest import Array, File, Input, decode, encode
from edge_runtime.wire.messages import Plan, Training
from edge_runtime.wire.tensors import TensorTable, pack, unpack

MANIFEST, WEIGHTS = linear_bundle("test", SOURCES["har"], 6, "hinge")
PART = MixedEffectPart(shared=0.5, ridge=0.1, width=1.0)
BLOB = Blob(digest="0" * 64, size_bytes=1)
FILE = File(digest="0" * 64, size_bytes=1)


def test_a_linear_manifest_is_read_as_it_was_written():
    assert decode(encode(MANIFEST)) == MANIFEST
    assert unpack(MANIFEST.table, WEIGHTS).tolist() == [0.0] * 6
    assert MANIFEST.group(("activity",), MANIFEST.weights) == MANIFEST


def changed(**fields):
    return msgspec.structs.replace(MANIFEST, **fields)


def other_task(**fields):
    return (msgspec.structs.replace(MANIFEST.tasks[0], **fields),)


@pytest.mark.parametrize(
    ("manifest", "wrong"),
    [
        (changed(tasks=(*other_task(), *other_task(name="more"))), "one task"),
        (changed(other_inputs={"signal": MANIFEST.inputs["features"]}), "one input"),
        (changed(input=Array(shape=(6,), dtype="float32")), "one input"),
        (changed(other_inputs={"features": Input(shape=(2, 3), dtype="float32")}), "one input"),
        (changed(tensors=TensorTable.of({"head.activity.weight": (5,)}).tensors), "one tensor"),
        (changed(tensors=TensorTable.of({"head.other.weight": (6,)}).tensors), "one tensor"),
        (changed(tasks=other_task(target=Array(shape=(2,), dtype="float32"), metric=None)), "values as labels"),
        (changed(tasks=other_task(target=Array(shape=(), dtype="int64"), metric=None)), "values as labels"),
        (changed(graphs={"encoder.predict": FILE}), "no graphs"),
        (changed(embedding=Array(shape=(6,), dtype="float32")), "no graphs"),
    ],
)  # fmt: skip
def test_a_linear_manifest_that_says_something_else_is_refused(manifest, wrong):
    with pytest.raises(BundleInvalid, match=wrong):
        decode(msgspec.json.encode(manifest))


def test_answers_have_the_weights_layout_or_that_of_the_statistics():
    table = MANIFEST.table
    assert answer_table(table, GradientStep()) is table
    assert answer_table(table, DualSteps(curvature=1.0, passes=1.0)) is table
    statistics = answer_table(table, PART)
    assert {tensor.name: tensor.shape for tensor in statistics.tensors} == {"a": (21,), "b": (6,)}
    file = pack(statistics, np.zeros(27, np.float32))
    assert len(file) <= answer_bytes(len(WEIGHTS))


def test_a_plans_passes_are_the_budget_of_a_linear_model():
    common = {
        "work": "train", "round": 0, "phase": "train", "group": "activity", "tasks": ("activity",), "bundle": BLOB,
        "weights": BLOB, "signature": "0" * 128, "deadline_s": 1.0,
        "training": Training(epochs=3, first_epoch=0, seed=0, probe_every=0),
    }  # fmt: skip
    plans = [Plan(**common, linear=linear) for linear in (DualSteps(curvature=1.0, passes=2.5), GradientStep(), None)]
    assert [plan.passes for plan in plans] == [2.5, 3, 3]
    assert PlanLimits(epochs=2).fault(plans[0]) == "2.5 epochs are asked for, this device trains 2 (max_epochs)"
    evaluation = msgspec.structs.replace(plans[1], work="evaluate", training=None, data_split="test")
    assert evaluation.passes == 0
