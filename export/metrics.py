"""Which metric a task has: as its model says, or what is usual for its loss; none where that is not clear."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edge_runtime.wire.metrics import MetricName, misfit
from export import losses
from export.errors import ModelInvalid
from export.prediction import Prediction, by_name

_BY_FUNCTION: tuple[tuple[Callable[..., Any], MetricName], ...] = (
    *((loss, "rmse") for loss in (losses.masked_l1, losses.masked_l2, losses.l1, losses.l2)),
    *((loss, "rmse") for loss in (F.l1_loss, F.mse_loss, F.smooth_l1_loss, F.huber_loss)),
    *((loss, "miou") for loss in (losses.pixel_cross_entropy, F.cross_entropy, F.nll_loss)),
    *((loss, "accuracy") for loss in (losses.masked_binary_cross_entropy, F.binary_cross_entropy_with_logits)),
    (losses.cosine, "angular_error_deg"),
)
_BY_TYPE: tuple[tuple[type, MetricName], ...] = (
    *((kind, "rmse") for kind in (losses.MaskedHuber, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss)),
    *((kind, "miou") for kind in (losses.CrossEntropy, nn.CrossEntropyLoss, nn.NLLLoss)),
    (nn.BCEWithLogitsLoss, "accuracy"),
)


class Chosen(NamedTuple):
    """A task's metric, None where it has none, the class that means no label, and which prediction is measured."""

    metric: MetricName | None = None
    ignored: int | None = None
    measured: str | None = None
    """None of a head's only prediction."""


def choose(
    task: str,
    loss: Callable[[Any, Tensor], Tensor],
    target: Tensor,
    prediction: Prediction,
    *,
    metrics: Mapping[str, str | tuple[str, str] | None],
    ignored_classes: Mapping[str, int],
) -> Chosen:
    """Return the metric of a task from what its model says; target and predictions are batches (B, …).

    Raises ModelInvalid for a metric that does not exist or cannot be measured on these.
    """
    classes = target.dtype == torch.int64
    ignored = ignored_classes.get(task, _ignored(loss)) if classes else None
    asked = metrics.get(task)
    named = by_name(prediction)
    measured, asked = asked if isinstance(asked, tuple) and len(asked) == 2 else ("", asked)
    if asked is not None and measured not in named:
        if "" in named:
            raise ModelInvalid(f"head.{task} gives one prediction: name the metric of {task} alone")
        raise ModelInvalid(
            f"the metric of {task} is of one of the predictions {', '.join(named)}: say which, as "
            f"({next(iter(named))!r}, 'rmse')"
        )

    def fault(metric: MetricName) -> str | None:
        shapes = {"target": tuple(target.shape[1:]), "prediction": tuple(named[measured].shape[1:])}
        return misfit(metric, classes=classes, **shapes)

    if task not in metrics:
        usual = None if measured not in named else _usual(loss, target)
        return Chosen() if usual is None or fault(usual) is not None else Chosen(usual, ignored)
    if asked is None:
        return Chosen()
    for name in get_args(MetricName):
        if name == asked:
            if (why := fault(name)) is not None:
                raise ModelInvalid(f"the metric of {task}: {why}")
            return Chosen(name, ignored, measured or None)
    raise ModelInvalid(
        f"there is no metric {asked!r} for {task}: choose from {', '.join(get_args(MetricName))}, or None"
    )


def _usual(loss: Callable[..., Any], target: Tensor) -> MetricName | None:
    known = [metric for function, metric in _BY_FUNCTION if function is loss]
    known += [metric for kind, metric in _BY_TYPE if isinstance(loss, kind)]
    if not known:
        return None
    return "accuracy" if known[0] == "miou" and target.ndim == 1 else known[0]


def _ignored(loss: Callable[..., Any]) -> int | None:
    """Return the class that a loss leaves out, None for PyTorch's -100 and the like, which no label is."""
    if loss is losses.pixel_cross_entropy:
        return 0
    if isinstance(loss, losses.CrossEntropy):
        return loss.ignore
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and loss.ignore_index >= 0:
        return loss.ignore_index
    return None
