"""Metrics of a task by name: which way is better, how they are headed, and what they can be measured on.

How they are computed is in edge_runtime.training.metrics.
"""

# coverage: every branch

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["accuracy", "angular_error_deg", "miou", "rmse"]


@dataclass(frozen=True, kw_only=True)
class About:
    """The presentation of a metric."""

    title: str
    higher_is_better: bool
    decimals: int
    """The decimals that are shown."""


METRICS: Mapping[MetricName, About] = {
    "accuracy": About(title="accuracy", higher_is_better=True, decimals=4),
    "angular_error_deg": About(title="angular error (°)", higher_is_better=False, decimals=2),
    "miou": About(title="mIoU", higher_is_better=True, decimals=4),
    "rmse": About(title="RMSE", higher_is_better=False, decimals=4),
}
_OF_CLASSES = {"accuracy", "miou"}
_OF_VALUES = {"accuracy", "angular_error_deg", "rmse"}


def headed(metric: MetricName) -> str:
    """Return a metric's heading, with an arrow that points to where it is better."""
    about = METRICS[metric]
    return f"{about.title} {'↑' if about.higher_is_better else '↓'}"


def misfit(metric: MetricName, *, target: tuple[int, ...], classes: bool, prediction: tuple[int, ...]) -> str | None:
    """Return why a metric cannot be measured on targets and predictions of these shapes; None if it can.

    Shapes are without the batch dimension. `classes` says that the targets are class numbers (int64), not values.
    """
    if classes:
        if metric not in _OF_CLASSES:
            return f"{metric} is of values (float32), the targets are classes (int64)"
        fits = len(prediction) > 0 and prediction[1:] == target
        wanted = "(classes, …) of scores"
    else:
        if metric not in _OF_VALUES:
            return f"{metric} is of classes (int64), the targets are values (float32)"
        fits = prediction == target and (metric != "angular_error_deg" or len(target) > 0)
        wanted = "(components, …), as of the targets" if metric == "angular_error_deg" else "as of the targets"
    return None if fits else f"{metric} wants predictions {wanted}; they are {prediction}, the targets {target}"
