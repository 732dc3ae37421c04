import numpy as np
import pytest

from edge_runtime.training.velocity import VelocityStore
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (3,), "head.a.w": (2,)})
OTHER = TensorTable.of({"encoder.w": (3,), "head.b.w": (2,)})


def vector(value):
    return np.full(5, value, np.float32)


def test_velocity_begins_at_zero(tmp_path):
    assert not VelocityStore(tmp_path / "momentum").load(TABLE, 0).any()


def test_velocity_of_the_round_before_is_kept_and_may_be_changed(tmp_path):
    VelocityStore(tmp_path).save(TABLE, vector(2), 7)
    found = VelocityStore(tmp_path).load(TABLE, 7)
    np.testing.assert_array_equal(found, vector(2))
    found += 1  # a read-only view of a file would refuse


@pytest.mark.parametrize(("table", "previous"), [(TABLE, 6), (TABLE, 8), (OTHER, 7)])
def test_velocity_of_another_round_or_group_is_not_used(tmp_path, table, previous):
    store = VelocityStore(tmp_path)
    store.save(TABLE, vector(2), 7)
    assert not store.load(table, previous).any()


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"{}" * 100])
def test_velocity_that_is_damaged_is_zero(tmp_path, content):
    store = VelocityStore(tmp_path)
    store.save(TABLE, vector(2), 7)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(content)
    assert not store.load(TABLE, 7).any()


def test_velocity_of_the_last_two_rounds_alone_is_kept(tmp_path):
    store = VelocityStore(tmp_path)
    for of_round in range(1, 6):
        store.save(TABLE, vector(of_round), of_round)
    assert len(list(tmp_path.iterdir())) == 2
    assert [store.load(TABLE, of_round)[0] for of_round in (3, 4, 5)] == [0, 4, 5]


def test_velocity_that_is_not_finite_is_not_gone_on_with(tmp_path):
    store = VelocityStore(tmp_path)
    store.save(TABLE, vector(np.inf), 1)
    assert not store.load(TABLE, 1).any()
