"""The label contract of a task, from its loss: by what the loss is known to take, and by trying it.

PyTorch's losses and those of export.losses say themselves which class they leave out and whether their targets are
probabilities. Any loss is tried: whether it makes do with NaN and infinite values in a target, and, for class numbers,
whether it takes one beyond the prediction's K classes and what it leaves out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edge_runtime.wire.labels import LabelContract
from export import losses
from export.prediction import Loss, Prediction, by_name, loss_and_gradient

_CLASSES = (F.cross_entropy, F.nll_loss, losses.pixel_cross_entropy)
_CLASS_TYPES = (losses.CrossEntropy, nn.CrossEntropyLoss, nn.NLLLoss)
_PROBABILITIES = (
    F.cross_entropy,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    losses.masked_binary_cross_entropy,
    losses.dice,
)
_PROBABILITY_TYPES = (nn.CrossEntropyLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
_USUAL_IGNORED = (-100, -1, 255)
"""The class numbers beyond K that data sets use for no label."""


def label_contract(
    loss: Loss, target: Tensor, prediction: Prediction, *, ignored_class: int | None = None
) -> LabelContract:
    """Return what the labels of a task may be; target and predictions are an example's (B, …).

    `ignored_class` is what the model says means no label, as far as it says so.
    """
    function, settings = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    if target.dtype == torch.int64:
        if isinstance(prediction, Tensor) and (function in _CLASSES or isinstance(function, _CLASS_TYPES)):
            return LabelContract(classes=_class_count(prediction), ignored=_ignored(function, settings))
        return _tried_classes(loss, target, prediction, ignored_class)
    probabilities = function in _PROBABILITIES or isinstance(function, _PROBABILITY_TYPES)
    bounds = (0.0, 1.0) if probabilities else None
    nan, inf = (_makes_do_with(loss, target, prediction, value) for value in (torch.nan, torch.inf))
    return LabelContract(bounds=bounds, nan=nan, inf=inf)


def _class_count(prediction: Tensor) -> int:
    return int(prediction.shape[1 if prediction.ndim > 1 else 0])


def _ignored(function: Callable[..., Any], settings: dict[str, Any]) -> tuple[int, ...]:
    """Return the class that a known loss of classes leaves out."""
    if function is losses.pixel_cross_entropy:
        return (0,)
    if isinstance(function, losses.CrossEntropy):
        return () if function.ignore is None else (function.ignore,)
    if isinstance(function, nn.CrossEntropyLoss | nn.NLLLoss):
        return (function.ignore_index,)
    return (settings.get("ignore_index", -100),)


def _tried_classes(loss: Loss, target: Tensor, prediction: Prediction, ignored_class: int | None) -> LabelContract:
    """Return the contract of a loss that is not known.

    A loss that takes K, which is no class of K scores, has another use for its integers: nothing is asked of them then.
    """
    scores = [value for value in by_name(prediction).values() if value.ndim > 1 and _place(value) == target.shape]
    if len({_class_count(value) for value in scores}) != 1:
        return LabelContract()
    classes = _class_count(scores[0])

    def is_left_out(value: int) -> bool | None:
        """Return whether the loss leaves out samples of this class; None where it fails on them."""
        changed = target.clone(memory_format=torch.contiguous_format)
        changed[0] = value
        found = _gradient(loss, changed, target, prediction)
        return None if found is None else not found[0].any()

    if is_left_out(classes) is not None:
        return LabelContract()
    candidates = {*_USUAL_IGNORED, *(() if ignored_class is None else (ignored_class,))}
    return LabelContract(classes=classes, ignored=tuple(value for value in sorted(candidates) if is_left_out(value)))


def _place(scores: Tensor) -> tuple[int, ...]:
    return (*scores.shape[:1], *scores.shape[2:])


def _makes_do_with(loss: Loss, target: Tensor, prediction: Prediction, value: float) -> bool:
    changed = target.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[0] = value
    found = _gradient(loss, changed, target, prediction)
    return found is not None and bool(torch.isfinite(found).all())


def _gradient(loss: Loss, changed: Tensor, target: Tensor, prediction: Prediction) -> Tensor | None:
    """Return the gradient (B, N) at predictions of changed targets, followed in the batch by those that were given.

    So a mean over labelled elements always has one. None where the loss fails on them or is not finite.
    """
    try:
        value, found = loss_and_gradient(loss, (prediction, changed), (prediction, target))
    except Exception:  # noqa: BLE001 - a user's loss may raise anything
        return None
    return found if bool(torch.isfinite(value)) else None
