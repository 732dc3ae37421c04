import numpy as np

from edge_runtime.datasets.dataset import Split
from edge_runtime.datasets.summary import MOST_CLASSES, summary


def summed(labels, **factors):
    return summary(
        Split(inputs={"image": np.zeros((len(labels), 1, 1, 1), np.uint8)}, labels={"s": labels}, factors=factors), "s"
    )


def test_classes_and_their_imbalance():
    found = summed(np.array([[0] * 90 + [3] * 9 + [255]], np.uint8))
    assert found.classes == {0: 90, 3: 9, 255: 1}
    assert (found.labelled, found.elements, found.low, found.high) == (1, 100, 0, 255)
    assert found.text() == (
        "1 labelled, 3 values from 0 to 255, 0 is the most frequent (90.0%), 255 the rarest (1.00%), imbalance 90 to 1"
    )
    assert "imbalance" not in summed(np.array([2, 2], np.int64)).text()


def test_values_their_range_and_gaps():
    labels = np.array([[0.5, np.nan], [np.nan, np.nan], [np.inf, 2.0], [-1.0, 0.0]], np.float32)
    found = summed(labels)
    assert (found.labelled, found.low, found.high, found.missing, found.infinite) == (3, -1, 2, 3, 1)
    assert found.text() == "3 labelled, values from -1 to 2, 37.5% NaN, 1 infinite"
    assert summed(np.full((2, 2), np.nan, np.float32)).text() == "0 labelled, 100.0% NaN"


def test_integers_of_many_values_are_a_range():
    found = summed(np.arange(MOST_CLASSES + 1, dtype=np.uint16))
    assert found.classes is None
    assert found.text() == "1001 labelled, values from 0 to 1000"


def test_integers_with_a_factor_are_values_times_the_factor():
    found = summed(np.array([0, 500], np.uint16), s=0.002)
    assert found.classes is None
    assert found.text() == "2 labelled, values from 0 to 1"
