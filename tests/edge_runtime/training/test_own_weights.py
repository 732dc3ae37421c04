import numpy as np

from edge_runtime.training.own_weights import OwnWeights
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"head.a.w": (2,), "stem.w": (3,), "state.head.a.mean": (1,)})
CAME = np.array([1, 2, 3, 4, 5, 6], np.float32)
STEM, BUNDLE = ("stem",), "ab" * 32


def test_own_parts_stand_in_place_of_those_that_come(tmp_path):
    own = OwnWeights(tmp_path / "own")
    assert own.restore(TABLE, CAME, STEM, BUNDLE, 0) is CAME
    for number in (1, 3):
        own.save(TABLE, CAME + 10 * number, STEM, BUNDLE, number)
    for number in (4, 9):
        found = own.restore(TABLE, CAME, STEM, BUNDLE, number)
        np.testing.assert_array_equal(TABLE.views(found)["stem.w"], TABLE.views(CAME)["stem.w"] + 30)
        np.testing.assert_array_equal(TABLE.views(found)["head.a.w"], TABLE.views(CAME)["head.a.w"])
    assert own.restore(TABLE, CAME, (), BUNDLE, 4) is CAME
    own.save(TABLE, CAME, (), BUNDLE, 4)
    assert sorted(path.name for path in (tmp_path / "own" / BUNDLE[:16]).iterdir()) == ["3.safetensors"]


def test_own_weights_of_a_round_that_is_done_again_are_those_before(tmp_path):
    own = OwnWeights(tmp_path)
    for number in (1, 2):
        own.save(TABLE, CAME + 10 * number, STEM, BUNDLE, number)
    found = own.restore(TABLE, CAME, STEM, BUNDLE, 2)
    np.testing.assert_array_equal(TABLE.views(found)["stem.w"], TABLE.views(CAME)["stem.w"] + 10)
    own.save(TABLE, CAME, STEM, BUNDLE, 0)  # a federation that begins anew
    assert [path.name for path in (tmp_path / BUNDLE[:16]).iterdir()] == ["0.safetensors"]


def test_own_weights_of_another_bundle_go_when_new_ones_are_saved(tmp_path):
    own = OwnWeights(tmp_path)
    own.save(TABLE, CAME, STEM, BUNDLE, 1)
    assert own.restore(TABLE, CAME + 1, STEM, "cd" * 32, 2)[0] == CAME[0] + 1
    own.save(TABLE, CAME, STEM, "cd" * 32, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["cd" * 8]


def test_a_task_that_had_no_labels_then_has_what_the_server_sends(tmp_path):
    own = OwnWeights(tmp_path)
    less = TABLE.select(["stem"])
    own.save(less, np.full(3, 7, np.float32), STEM, BUNDLE, 1)
    found = TABLE.views(own.restore(TABLE, CAME, ("stem", "head.a", "state.head.a"), BUNDLE, 2))
    np.testing.assert_array_equal(found["stem.w"], [7, 7, 7])
    np.testing.assert_array_equal(found["head.a.w"], TABLE.views(CAME)["head.a.w"])


def test_own_weights_that_are_damaged_or_of_another_model_are_left(tmp_path):
    own = OwnWeights(tmp_path)
    own.save(TABLE, CAME, STEM, BUNDLE, 1)
    other = TensorTable.of({"head.a.w": (2,), "stem.v": (3,), "state.head.a.mean": (1,)})
    assert own.restore(other, CAME, STEM, BUNDLE, 2) is CAME
    wider = TensorTable.of({"head.a.w": (1,), "stem.w": (4,), "state.head.a.mean": (1,)})
    assert own.restore(wider, CAME, STEM, BUNDLE, 2) is CAME
    (tmp_path / BUNDLE[:16] / "1.safetensors").write_bytes(b"")
    assert own.restore(TABLE, CAME, STEM, BUNDLE, 2) is CAME
