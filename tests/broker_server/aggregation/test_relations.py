from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.aggregation.relations import (
    DeviceFold,
    Laplacian,
    OwnHeads,
    Similarity,
    laplacian_mixing,
    similarity_mixing,
)
from edge_runtime.wire.conflict import gram
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.tensors import TensorTable

FAMILY = Path(__file__).parents[2] / "fixtures" / "family"
GOLDEN = msgspec.json.decode((FAMILY / "personalised.json").read_bytes())
DEVICES = ("a", "b", "c", "d")
TABLE = TensorTable.of({"encoder.w": (6,), "state.encoder.mean": (1,)})


def test_fedu_moves_models_to_their_neighbours():
    golden = GOLDEN["fedu"]
    mixing = laplacian_mixing(np.array(golden["a"]), golden["step"])
    np.testing.assert_allclose(mixing @ np.array(golden["models"]), golden["after"], atol=1e-8)


@pytest.mark.parametrize(("threshold", "key"), [(0.0, "threshold_0"), (0.5, "threshold_half")])
def test_mat_fl_groups_models_softly(threshold, key):
    golden = GOLDEN["matfl"]
    encoders = np.array(golden["encoders"])
    shares = similarity_mixing(encoders @ encoders.T, threshold)
    np.testing.assert_allclose(shares, golden[key]["weights"], atol=1e-8)
    if "aggregated" in golden[key]:
        np.testing.assert_allclose(shares @ encoders, golden[key]["aggregated"], atol=1e-8)


def test_mat_fl_leaves_models_that_are_all_the_same():
    np.testing.assert_array_equal(similarity_mixing(np.ones((3, 3)), 0.0), np.eye(3))


def vectors(seed):
    return np.random.default_rng(seed).standard_normal((4, TABLE.size)).astype(np.float32)


@pytest.mark.parametrize(
    "rule", [Laplacian(step=0.5, neighbours={"a": ("b", "c"), "d": ()}), Similarity(threshold=0.2)]
)
def test_a_fold_makes_a_vector_for_each_device_and_leaves_its_state(rule, tmp_path):
    sent, trained = vectors(0), vectors(1)
    fold = DeviceFold(TABLE, rule, tmp_path)
    for device, before, after in zip(DEVICES, sent, trained, strict=True):
        fold.fold(device, before, after)
    found = dict(fold.result(np.zeros(TABLE.size, np.float32)))
    assert tuple(found) == DEVICES
    both = np.concatenate([trained, sent])[:, :6]
    expected = rule.coefficients(DEVICES, gram(list(both))) @ both
    np.testing.assert_allclose([each[:6] for each in found.values()], expected, atol=1e-6)
    np.testing.assert_array_equal([each[6] for each in found.values()], trained[:, 6])
    if isinstance(rule, Laplacian):  # d has no neighbours, b has all others
        np.testing.assert_array_equal(found["d"], trained[3])
        others = trained[[0, 2, 3], :6].mean(axis=0)
        np.testing.assert_allclose(found["b"][:6], 0.5 * trained[1, :6] + 0.5 * others, atol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_a_fold_of_nothing_makes_nothing_and_of_other_vectors_is_refused(tmp_path):
    fold = DeviceFold(TABLE, Similarity(threshold=0.0), tmp_path)
    with pytest.raises(TensorsInvalid):
        fold.fold("a", np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert list(DeviceFold(TABLE, Similarity(threshold=0.0), tmp_path).result(np.zeros(7, np.float32))) == []


def test_a_fold_of_heads_alone_has_all_else_in_common(tmp_path):
    parameters = {"encoder.w": (2,), "head.a.w": (2,), "head.b.w": (1,)}
    table = TensorTable.of({**parameters, "state.encoder.m": (1,), "state.head.a.m": (1,)})
    fold = DeviceFold(table, OwnHeads(), tmp_path)
    trained = np.random.default_rng(0).standard_normal((2, table.size)).astype(np.float32)
    for device, vector in zip("xy", trained, strict=True):
        fold.fold(device, np.zeros(table.size, np.float32), vector)
    shared = np.full(table.size, 9, np.float32)
    for number, (_, vector) in enumerate(fold.result(shared)):
        views, own = table.views(vector), table.views(trained[number])
        for name in ("encoder.w", "state.encoder.m"):
            np.testing.assert_array_equal(views[name], 9)
        for name in ("head.a.w", "head.b.w", "state.head.a.m"):
            np.testing.assert_array_equal(views[name], own[name])
