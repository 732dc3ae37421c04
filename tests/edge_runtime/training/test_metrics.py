"""Golden values are worked out by hand beside them; torch's own are in tests/export/test_metrics.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training.metrics import Accuracy, AngularError, MeanIoU, RootMeanSquare, metric_of
from edge_runtime.wire.manifest import Array, Task

NAN = math.nan


def scores(classes, of=3):
    """Scores (B, K, …) whose highest are these classes (B, …)."""
    return np.moveaxis(np.eye(of, dtype=np.float32)[np.array(classes)], -1, 1)


def floats(values):
    return np.array(values, np.float32)


def test_mean_iou_is_that_of_the_pooled_counts():
    metric = MeanIoU(3)
    metric.add(scores([[0, 0, 1]]), np.array([[0, 1, 1]]))
    metric.add(scores([[1, 0, 0]]), np.array([[1, 0, 2]]))
    # class 0: two of four (predicted 4, labelled 2, both 2); 1: two of three; 2: none of one
    assert metric.result() == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)


def test_mean_iou_leaves_out_classes_that_do_not_occur():
    metric = MeanIoU(3)
    metric.add(scores([[0, 0]]), np.array([[0, 0]]))
    assert metric.result() == 1


def test_mean_iou_ignores_a_class_but_not_predictions_of_it():
    metric = MeanIoU(3, ignored=0)
    metric.add(scores([[1, 0, 1, 2]]), np.array([[0, 1, 1, 2]]))
    assert metric.result() == pytest.approx((1 / 2 + 1) / 2)  # class 1: one of its two is told to be 0


def test_mean_iou_takes_numbers_outside_the_classes_for_no_label():
    metric = MeanIoU(3, ignored=255)
    metric.add(scores([[0, 1, 2, 2]]), np.array([[-100, 255, 7, 2]]))
    assert metric.result() == 1


def test_accuracy_of_classes():
    metric = Accuracy(ignored=1)
    metric.add(scores([0, 1, 2, 2]), np.array([0, 1, 0, 2]))
    assert metric.result() == pytest.approx(2 / 3)


def test_accuracy_of_masks():
    metric = Accuracy()
    metric.add(floats([[2.0, -1.0, 0.5, -3.0]]), floats([[1, 1, NAN, 0]]))
    assert metric.result() == pytest.approx(2 / 3)


def test_root_mean_square_leaves_out_what_is_not_a_number():
    metric = RootMeanSquare()
    metric.add(floats([[1.0, 2.0]]), floats([[4.0, NAN]]))
    metric.add(floats([[0.0, 0.0]]), floats([[4.0, 0.0]]))
    assert metric.result() == pytest.approx(math.sqrt((9 + 16 + 0) / 3))


def test_angular_error_is_the_mean_angle():
    metric = AngularError()
    found = floats([[2, 0, 0], [0, 1, 0], [-3, 0, 0], [0, 0, 0], [1, 1, 0]])
    wanted = floats([[1, 0, 0], [5, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]])
    metric.add(found[:3], wanted[:3])
    assert metric.result() == pytest.approx((0 + 90 + 180) / 3)
    metric.add(found[3:], wanted[3:])
    assert metric.result() == pytest.approx((0 + 90 + 180 + 90 + 45) / 5)


def test_angular_error_leaves_out_places_without_label():
    metric = AngularError()
    found = np.moveaxis(floats([[[0, 1], [1, 0], [1, 0], [3, 4]]]), -1, 1)  # (1, 2, 4)
    wanted = np.moveaxis(floats([[[0, 1], [NAN, NAN], [0, 0], [NAN, 1]]]), -1, 1)
    metric.add(found, wanted)
    assert metric.result() == pytest.approx(math.degrees(math.acos(0.8)) / 2)


@pytest.mark.parametrize(
    ("metric", "prediction", "target"),
    [
        (MeanIoU(3, 1), scores([[1, 2]]), np.array([[1, 1]])),
        (MeanIoU(3), scores([[1, 2]]), np.array([[9, -1]])),
        (Accuracy(0), scores([0, 2]), np.array([0, 0])),
        (Accuracy(), floats([[1.0]]), floats([[NAN]])),
        (RootMeanSquare(), floats([[1.0]]), floats([[NAN]])),
        (AngularError(), floats([[1.0, 0.0]]), floats([[NAN, 0.0]])),
    ],
)
def test_metric_of_nothing_labelled_is_none(metric, prediction, target):
    assert metric.result() is None
    metric.add(prediction, target)
    assert metric.result() is None


MAKE = {
    "miou": lambda: MeanIoU(4, 0),
    "accuracy": lambda: Accuracy(0),
    "rmse": RootMeanSquare,
    "angular_error_deg": AngularError,
}


@given(
    name=st.sampled_from(sorted(MAKE)),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 6),
    batch=st.integers(1, 6),
)
def test_metric_of_batches_is_that_of_the_whole(name, seed, count, batch):
    random = np.random.default_rng(seed)
    prediction = random.normal(size=(count, 4, 3)).astype(np.float32)
    if name in {"miou", "accuracy"}:
        target = random.integers(0, 4, (count, 3))
    else:
        target = random.normal(size=prediction.shape).astype(np.float32)
        target[random.random(target.shape) < 0.3] = NAN
    whole, parts = MAKE[name](), MAKE[name]()
    whole.add(prediction, target)
    for start in range(0, count, batch):
        parts.add(prediction[start : start + batch], target[start : start + batch])
    expected = whole.result()
    assert parts.result() == (None if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize(
    ("metric", "kind"),
    [("accuracy", Accuracy), ("miou", MeanIoU), ("rmse", RootMeanSquare), ("angular_error_deg", AngularError)],
)
def test_metric_of_a_task_is_what_its_bundle_names(metric, kind):
    of_classes = metric in {"accuracy", "miou"}
    target = Array(shape=(4,), dtype="int64") if of_classes else Array(shape=(3, 4), dtype="float32")
    task = Task(name="a", target=target, prediction=Array(shape=(3, 4), dtype="float32"), metric=metric)
    assert isinstance(metric_of(task), kind)


def test_task_without_metric_has_none():
    array = Array(shape=(3, 4), dtype="float32")
    assert metric_of(Task(name="a", target=array, prediction=array)) is None
