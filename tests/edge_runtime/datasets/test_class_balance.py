import re

import numpy as np
import pytest

from edge_runtime.datasets.class_balance import AT_ONCE, ClassCounts, imbalance_text


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_classes_are_counted_without_what_is_none(dtype):
    counts = ClassCounts(4, ignored=(1, 255, -100))
    counts.add(np.array([[0, 0], [1, 3], [255, 4]]).astype(dtype))
    counts.add(np.full(AT_ONCE + 1, 3, dtype))
    if np.dtype(dtype).kind == "i":
        counts.add(np.array([-1, -100], dtype))
    assert counts.result() == (2, 0, 0, AT_ONCE + 2)


@pytest.mark.parametrize(
    ("counts", "ignored", "text"),
    [
        ((50, 50), (), None),
        ((90, 10), (), None),
        ((0, 0), (), None),
        ((), (), None),
        ((90, 0), (1, 255), None),
        ((900, 90, 10), (), "90 to 1: label 0 is 90% of all, label 2 1%; weights of classes"),
        ((1, 999_999), (), "999,999 to 1: label 1 is 100% of all, label 0 0.0001%; weights"),
        ((50, 0, 50), (), "t: classes are unequal, no label is 1 of 3 classes"),
        ((50, 0, 50, 0), (), "unequal, no label is 1 and 1 more of 4 classes"),
        ((50, 0, 1, 0), (3,), "50 to 1: .*; no label is 1 of 3 classes"),
    ],
)
def test_unequal_classes_are_said_in_a_sentence(counts, ignored, text):
    found = imbalance_text("t", counts, ignored)
    assert found == text if text is None else re.search(text, found)
