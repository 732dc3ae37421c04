import numpy as np

from edge_runtime.training.local_stem import LocalStem
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"head.a.w": (2,), "stem.w": (3,)})
CAME = np.array([1, 2, 3, 4, 5], np.float32)


def test_local_stem_stands_in_place_of_the_one_that_comes_and_is_not_sent(tmp_path):
    local = LocalStem(tmp_path / "stem")
    assert local.restore(TABLE, CAME, 0) is CAME
    for number in (1, 3):
        sent = local.save(TABLE, CAME, CAME + 10 * number, number)
        np.testing.assert_array_equal(sent, [1 + 10 * number, 2 + 10 * number, 3, 4, 5])
    np.testing.assert_array_equal(local.restore(TABLE, CAME, 4), [1, 2, 33, 34, 35])
    np.testing.assert_array_equal(local.restore(TABLE, CAME, 5), [1, 2, 33, 34, 35])


def test_local_stem_of_a_round_that_is_done_again_is_the_one_before(tmp_path):
    local = LocalStem(tmp_path)
    for number in (1, 2):
        local.save(TABLE, CAME, CAME + 10 * number, number)
    np.testing.assert_array_equal(local.restore(TABLE, CAME, 2), [1, 2, 13, 14, 15])
    local.save(TABLE, CAME, CAME, 0)  # a federation that begins anew
    assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]


def test_local_stem_that_is_damaged_or_of_another_model_is_left(tmp_path):
    local = LocalStem(tmp_path)
    local.save(TABLE, CAME, CAME, 1)
    other = TensorTable.of({"head.a.w": (2,), "stem.v": (3,)})
    assert local.restore(other, CAME, 2) is CAME
    (tmp_path / "1.safetensors").write_bytes(b"")
    assert local.restore(TABLE, CAME, 2) is CAME
