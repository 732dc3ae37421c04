import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_runtime.datasets import stored_array
from edge_runtime.datasets.value_scan import Place, everywhere, scan_values

NAN, INF = math.nan, math.inf


def test_scan_finds_the_first_and_the_furthest(monkeypatch):
    monkeypatch.setattr(stored_array, "BLOCK_BYTES", 16)  # two samples
    labels = np.array([[0, 1], [2, 3], [NAN, NAN], [NAN, 4], [INF, 9], [5, -INF], [NAN, 1], [8, -7]], np.float32)
    found = scan_values(labels)
    assert found.labelled.tolist() == [True, True, False, *[True] * 5]
    assert found.partly_nan.sample == 3
    assert found.infinite == Place(INF, 4)
    assert (found.lowest, found.highest) == (Place(-7, 7), Place(9, 4))


def test_scan_of_labels_that_are_not_there():
    found = scan_values(np.full((3, 2), NAN, np.float32))
    assert not found.labelled.any()
    assert (found.partly_nan, found.infinite, found.lowest, found.highest) == (None, None, None, None)


def test_mask_of_labels_everywhere_takes_no_memory():
    assert scan_values(np.ones(100_000, np.float32)).labelled.strides == everywhere(5).strides == (0,)


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=3), elements=st.floats(width=32)))
def test_scan_is_what_the_definition_says(labels):
    found, rows = scan_values(labels), labels.reshape(len(labels), -1)
    np.testing.assert_array_equal(found.labelled, ~np.isnan(rows).all(1))
    partly = np.isnan(rows).any(1) & ~np.isnan(rows).all(1)
    assert (found.partly_nan is None) == (not partly.any())
    assert (found.infinite is None) == (not np.isinf(rows).any())
    finite = rows[np.isfinite(rows)]
    assert (found.lowest is None) == (finite.size == 0)
    if finite.size:
        assert (found.lowest.value, found.highest.value) == (finite.min(), finite.max())
        assert finite.min() in rows[found.lowest.sample]
        assert finite.max() in rows[found.highest.sample]
