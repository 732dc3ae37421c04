import numpy as np
import pytest

from edge_runtime.training.kept_weights import KeptWeights
from edge_runtime.wire.tensors import TensorTable, unpack

TABLE = TensorTable.of({"encoder.w": (5,), "head.a.w": (3,)})


def test_file_has_the_last_whole_epoch(tmp_path):
    path = tmp_path / "folder" / "weights.safetensors"
    kept = KeptWeights(path)
    kept.check(TABLE, np.zeros(8, np.float32))
    assert not path.exists()
    assert kept.said == ""
    for epoch in range(2):
        kept.keep(TABLE, np.full(8, epoch, np.float32), epoch)
        assert unpack(TABLE, path.read_bytes()).tolist() == [epoch] * 8
    assert kept.said == f"; {path} has the weights of epoch 2"


def test_epoch_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "weights"
    kept = KeptWeights(path)
    kept.keep(TABLE, np.ones(8, np.float32), 0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="8"):
        kept.keep(TABLE, np.ones(7, np.float32), 1)
    assert path.read_bytes() == before
    assert kept.said.endswith("the weights of epoch 1")


def test_nothing_is_kept_where_no_file_is_named(tmp_path):
    kept = KeptWeights(None)
    kept.check(TABLE, np.zeros(8, np.float32))
    kept.keep(TABLE, np.zeros(8, np.float32), 0)
    assert kept.said == ""
