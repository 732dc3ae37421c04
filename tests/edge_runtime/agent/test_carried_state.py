import numpy as np
import pytest

from edge_runtime.agent.carried_state import CarriedState
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (3,), "head.a.w": (2,)})
OTHER = TensorTable.of({"encoder.w": (3,), "head.b.w": (2,)})


def vector(value):
    return np.full(5, value, np.float32)


def test_carried_vector_is_absent_at_first(tmp_path):
    assert CarriedState(tmp_path / "momentum").load(TABLE, 0) is None


def test_carried_vector_of_the_round_before_is_kept_and_may_be_changed(tmp_path):
    CarriedState(tmp_path).save(TABLE, vector(2), 7)
    found = CarriedState(tmp_path).load(TABLE, 7)
    np.testing.assert_array_equal(found, vector(2))
    found += 1  # a read-only view of a file would refuse


@pytest.mark.parametrize(("table", "previous"), [(TABLE, 6), (TABLE, 8), (OTHER, 7)])
def test_carried_vector_of_another_round_or_group_is_not_used(tmp_path, table, previous):
    store = CarriedState(tmp_path)
    store.save(TABLE, vector(2), 7)
    assert store.load(table, previous) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"{}" * 100])
def test_carried_vector_that_is_damaged_is_absent(tmp_path, content):
    store = CarriedState(tmp_path)
    store.save(TABLE, vector(2), 7)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(content)
    assert store.load(TABLE, 7) is None


def test_carried_vector_of_the_last_two_rounds_alone_is_kept(tmp_path):
    store = CarriedState(tmp_path)
    for of_round in range(1, 6):
        store.save(TABLE, vector(of_round), of_round)
    assert len(list(tmp_path.iterdir())) == 2
    assert store.load(TABLE, 3) is None
    assert [store.load(TABLE, of_round)[0] for of_round in (4, 5)] == [4, 5]


def test_carried_vector_of_a_round_that_left_none_is_absent_and_older_ones_go(tmp_path):
    store = CarriedState(tmp_path)
    store.save(TABLE, None, 1)
    for of_round in (2, 3, 4):
        store.save(TABLE, vector(of_round), of_round)
    store.save(TABLE, None, 4)
    assert store.load(TABLE, 4) is None
    assert [path.name for path in tmp_path.iterdir()] == ["3.safetensors"]  # round 4 may have to be done again


def test_carried_vector_that_is_not_finite_is_not_gone_on_with(tmp_path):
    store = CarriedState(tmp_path)
    store.save(TABLE, vector(np.inf), 1)
    assert store.load(TABLE, 1) is None
