import struct

import numpy as np
import pytest
from mat_samples import DOUBLE, SPARSE, STRUCTURE, UINT8, cell, compressed, element, matrix, numbers, written

from edge_runtime.datasets.dataset import DatasetInvalid
from edge_runtime.datasets.mat_file import HEADER_BYTES, read_mat


def test_arrays_and_cells_are_read_plain_and_compressed(tmp_path):
    wide = np.arange(6.0).reshape(2, 3)
    small = np.array([[1, 2, 3]], np.uint8)
    path = written(
        tmp_path,
        numbers("wide", wide),
        compressed(cell("c", numbers("", small, UINT8, 2), numbers("", wide))),
        compressed(numbers("byte", small, UINT8, 2)),
    )
    found = read_mat(path)
    assert [*found] == ["wide", "c", "byte"]
    np.testing.assert_array_equal(found["wide"], wide)
    np.testing.assert_array_equal(found["byte"], small)
    for one, other in zip(found["c"], (small, wide), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("elements", "wrong"),
    [
        ([numbers("s", [[1.0]], STRUCTURE)], "a structure"),
        ([numbers("s", [[1.0]], SPARSE)], "a sparse array"),
        ([numbers("z", [[1.0]], flags=0x800)], "complex"),
        ([cell("c", numbers("", [[1.0]], STRUCTURE))], "a cell is a structure"),
        ([element(9, b"12345678")], "type 9"),
        ([element(14, b"")], "without a name"),
        ([numbers("a", [[1.0]])[:-4]], "in the middle"),
        ([numbers("a", [[1.0]], kind=77)], "77"),
        ([matrix("a", DOUBLE, (2, 2), element(9, b"\0" * 8))], "reshape"),
        ([compressed(b"")], "unpack"),
        ([struct.pack("<II", 15, 4) + b"abcd"], "incorrect header"),
        ([b"\1"], "unpack"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, elements, wrong):
    with pytest.raises(DatasetInvalid, match=wrong):
        read_mat(written(tmp_path, *elements))


def test_files_that_are_no_mat_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DatasetInvalid, match="cannot be read"):
        read_mat(tmp_path / "none.mat")
    for header in (b"", b"x" * HEADER_BYTES):
        with pytest.raises(DatasetInvalid, match="level 5"):
            read_mat(written(tmp_path, header=header))


def test_what_would_be_too_large_is_never_allocated(tmp_path, monkeypatch):
    path = written(tmp_path, compressed(numbers("a", np.zeros((1, 40)))))
    monkeypatch.setattr("edge_runtime.datasets.mat_file.MAX_BYTES", 300)
    with pytest.raises(DatasetInvalid, match="an array is larger"):
        read_mat(path)
    monkeypatch.setattr("edge_runtime.datasets.mat_file.MAX_BYTES", 100)
    with pytest.raises(DatasetInvalid, match="is larger than 100 bytes"):
        read_mat(path)
