"""Metrics of predictions as sums over batches: mean intersection over union, accuracy, RMSE, mean angular error.

Elements without a label are left out, as in the losses: NaN, a vector of length zero, the class that the loss ignores,
and numbers that are not a class. B is a batch, K are classes. A metric without any label is None. Sums are float64 or
integers, so the size of the batches changes a result by rounding at most.
"""

# coverage: every branch

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.manifest import Task

Array = NDArray[Any]
Counts = NDArray[np.int64]


class Metric(Protocol):
    """A seam: the measure of one task's predictions."""

    def add(self, prediction: Array, target: Array) -> None:
        """Take a batch of predictions and their targets."""
        ...

    def result(self) -> float | None:
        """Return the metric of all batches; None where nothing was labelled."""
        ...


class MeanIoU:
    """Mean intersection over union of classes (Everingham et al., IJCV 2015, section 4; Long et al., CVPR 2015).

    A class's is TP / (TP + FP + FN) over all labelled elements that were taken, not the mean over images. The mean is
    over the classes that occur in a target or a prediction, without the ignored one; a prediction of that is a miss.
    """

    def __init__(self, classes: int, ignored: int | None = None) -> None:
        self._classes = classes
        self._ignored = ignored
        self._both: Counts = np.zeros(classes, np.int64)
        self._predicted: Counts = np.zeros(classes, np.int64)
        self._labelled: Counts = np.zeros(classes, np.int64)

    def add(self, prediction: Array, target: Array) -> None:
        """Take a batch of scores (B, K, …) and classes (B, …)."""
        found, wanted = _classes(prediction, target, self._ignored)
        self._both += np.bincount(wanted[found == wanted], minlength=self._classes)
        self._predicted += np.bincount(found, minlength=self._classes)
        self._labelled += np.bincount(wanted, minlength=self._classes)

    def result(self) -> float | None:
        """Return the metric, from 0 to 1."""
        union = self._predicted + self._labelled - self._both  # (K,)
        there = union > 0
        if self._ignored is not None and 0 <= self._ignored < self._classes:
            there[self._ignored] = False
        return float(np.mean(self._both[there] / union[there])) if there.any() else None


class Accuracy:
    """The share of labelled elements that are predicted right.

    Of classes: those whose highest score is the target's. Of masks, targets from 0 to 1: those whose logit is above 0
    where the target is above 0.5.
    """

    def __init__(self, ignored: int | None = None) -> None:
        self._ignored = ignored
        self._right = 0
        self._labelled = 0

    def add(self, prediction: Array, target: Array) -> None:
        """Take scores (B, K, …) and classes (B, …), or logits and masks of one shape, NaN for no label."""
        if target.dtype.kind == "f":
            known = np.logical_not(np.isnan(target))
            right = (prediction[known] > 0) == (target[known] > 0.5)
        else:
            found, wanted = _classes(prediction, target, self._ignored)
            right = found == wanted
        self._right += int(right.sum())
        self._labelled += len(right)

    def result(self) -> float | None:
        """Return the metric, from 0 to 1."""
        return self._right / self._labelled if self._labelled else None


class RootMeanSquare:
    """The root of the mean squared error over labelled elements, in the targets' unit (Eigen et al., NIPS 2014)."""

    def __init__(self) -> None:
        self._squares = 0.0
        self._labelled = 0

    def add(self, prediction: Array, target: Array) -> None:
        """Take a batch of values of one shape, NaN in the target for no label."""
        known = np.logical_not(np.isnan(target))
        error = np.subtract(prediction[known], target[known], dtype=np.float64)
        self._squares += float(np.square(error, out=error).sum())
        self._labelled += len(error)

    def result(self) -> float | None:
        """Return the metric, at least 0."""
        return float(np.sqrt(self._squares / self._labelled)) if self._labelled else None


class AngularError:
    """The mean angle between vectors, in degrees, over places whose target has a length (Eigen & Fergus, ICCV 2015).

    Lengths do not matter; a prediction without any is at a right angle.
    """

    def __init__(self) -> None:
        self._degrees = 0.0
        self._labelled = 0

    def add(self, prediction: Array, target: Array) -> None:
        """Take a batch of vectors along dimension 1, (B, C, …); NaN in the target counts as 0."""
        wanted = np.where(np.isnan(target), np.float32(0), target)
        along = _product(prediction, wanted)  # (B, …)
        lengths = np.sqrt(_product(wanted, wanted))
        known = lengths > 0
        scale = (np.sqrt(_product(prediction, prediction)) * lengths)[known]  # (N,) of N labelled places
        cosine = np.divide(along[known], scale, out=np.zeros_like(scale), where=scale != 0)
        self._degrees += float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).sum())
        self._labelled += len(cosine)

    def result(self) -> float | None:
        """Return the metric, from 0 to 180."""
        return self._degrees / self._labelled if self._labelled else None


def metric_of(task: Task) -> Metric | None:
    """Return a new metric of a task; None where its bundle names none."""
    match task.metric:
        case "accuracy":
            return Accuracy(task.ignored)
        case "angular_error_deg":
            return AngularError()
        case "miou":
            return MeanIoU(task.outputs[task.measured_output].shape[0], task.ignored)
        case "rmse":
            return RootMeanSquare()
        case _:
            return None


def _product(one: Array, other: Array) -> NDArray[np.float64]:
    """Return inner products along dimension 1, (B, C, …) to (B, …)."""
    return np.asarray(np.einsum("bc...,bc...->b...", one, other, dtype=np.float64))


def _classes(prediction: Array, target: Array, ignored: int | None) -> tuple[Counts, Counts]:
    """Return predicted and labelled classes of the labelled elements, each (N,), from (B, K, …) and (B, …)."""
    known = (target >= 0) & (target < prediction.shape[1])
    if ignored is not None:
        known &= target != ignored
    return prediction.argmax(1)[known], target[known].astype(np.int64)
