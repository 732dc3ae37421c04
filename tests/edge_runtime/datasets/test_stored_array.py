import gc
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.datasets.dataset import Dataset
from edge_runtime.datasets.dataset_writer import write_split
from edge_runtime.datasets.stored_array import BLOCK_BYTES, blocks, read_samples
from edge_runtime.training.process_memory import read_proc_bytes

SHAPES = {"classes": (), "pixels": (3, 5), "one": (1,)}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    labels = {name: random.integers(0, 99, (20, *shape)).astype(">i4") for name, shape in SHAPES.items()}
    write_split(folder / "train", np.zeros((20, 1, 1, 1), np.uint8), labels)
    np.save(folder / "train" / "columns.npy", np.asfortranarray(labels["pixels"]))
    return labels | {"columns": labels["pixels"]}, Dataset.open(folder).train.labels


@given(st.data())
def test_samples_are_those_of_the_array(arrays, data):
    wanted, stored = arrays
    name = data.draw(st.sampled_from(sorted(wanted)))
    first, count = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 20))
    in_a_row = np.arange(first, min(20, first + count))
    for chosen in (in_a_row, np.array(data.draw(st.lists(st.integers(0, 19))), np.int64)):
        found = read_samples(stored[name], chosen)
        np.testing.assert_array_equal(found, wanted[name][chosen])
        assert found.flags.c_contiguous
        assert found.flags.writeable
        assert found.dtype == stored[name].dtype


@pytest.mark.parametrize("name", [*SHAPES, "columns"])
@pytest.mark.parametrize("chosen", [[20], [3, -1], [0, 99, 2]])
def test_sample_outside_is_refused(arrays, name, chosen):
    with pytest.raises(IndexError):
        read_samples(arrays[1][name], np.array(chosen))


@pytest.mark.slow
def test_blocks_are_all_of_the_array_in_order(tmp_path):
    labels = np.arange(3 * BLOCK_BYTES // 8 + 5).reshape(-1, 1)
    write_split(tmp_path / "train", np.zeros((len(labels), 1, 1, 1), np.uint8), {"kind": labels})
    for array in (labels, Dataset.open(tmp_path).train.labels["kind"]):
        found = list(blocks(array))
        assert [start for start, _ in found] == [k * BLOCK_BYTES // 8 for k in range(4)]
        np.testing.assert_array_equal(np.concatenate([block for _, block in found]), labels)


def test_file_that_is_cut_short_while_in_use_is_named(tmp_path):
    write_split(tmp_path / "train", np.zeros((9, 1, 1, 1), np.uint8), {"kind": np.arange(9)})
    split = Dataset.open(tmp_path).train
    os.truncate(tmp_path / "train" / "kind.npy", 130)
    with pytest.raises(OSError, match=r"cut short while it was in use.*train/kind\.npy"):
        split.batch([8])


def test_files_are_closed_with_their_arrays(tmp_path, open_files):
    write_split(tmp_path / "train", np.zeros((9, 1, 1, 1), np.uint8), {"kind": np.arange(9)})
    gc.collect()  # what earlier tests left
    before = open_files()
    split = Dataset.open(tmp_path).train
    view = split.labels["kind"][2:5]
    assert open_files() > before
    del split
    assert view.tolist() == [2, 3, 4]
    del view
    gc.collect()
    assert open_files() == before


def test_what_was_read_stays_out_of_memory(tmp_path):
    """Labels and images of 64 MiB, all of them read in a random order and scanned, take a few MiB at a time."""
    count = 2048
    labels = np.zeros((count, 4096), np.float32)
    labels[7] = np.nan
    write_split(tmp_path / "train", np.zeros((count, 2, 64, 128), np.uint8), {"depth": labels})
    del labels
    split = Dataset.open(tmp_path).train
    status = tmp_path.joinpath("/proc/self/status")
    if (before := read_proc_bytes(status, "RssFile")) is None:
        pytest.skip("the system does not report what of a process's memory is of files")
    assert split.examples(["depth"]) == {"depth": count - 1}
    order = np.random.default_rng(0).permutation(count)
    for start in range(0, count, 32):
        split.batch(order[start : start + 32])
        assert read_proc_bytes(status, "RssFile") - before < 1 << 20
