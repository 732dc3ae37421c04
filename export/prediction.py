"""What a head gives: one prediction, or several in a dictionary or a tuple. A loss gets it as the head returned it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from edge_runtime.wire.graph_names import prediction_of

Prediction = Tensor | Mapping[str, Tensor] | tuple[Tensor, ...] | list[Tensor]
Loss = Callable[[Any, Tensor], Tensor]
"""Maps a prediction and a target to a scalar."""
Batch = tuple[Prediction, Tensor]
"""A prediction (B, …) and its target (B, …)."""


def by_name(prediction: Prediction) -> dict[str, Tensor]:
    """Return several predictions by their names, those of a tuple by its fields or its numbers; one alone by ""."""
    if isinstance(prediction, Tensor):
        return {"": prediction}
    if isinstance(prediction, Mapping):
        return dict(prediction)
    return dict(zip(getattr(prediction, "_fields", map(str, range(len(prediction)))), prediction, strict=True))


def outputs_of(prediction: Prediction) -> dict[str, Tensor]:
    """Return predictions by their names in graphs."""
    return {prediction_of(name): value for name, value in by_name(prediction).items()}


def shapes_of(prediction: Prediction) -> str:
    """Return the shapes of predictions, with their names where there are several."""
    return ", ".join(f"{name} {tuple(value.shape)}".lstrip() for name, value in by_name(prediction).items())


def mapped(function: Callable[[Tensor], Tensor], prediction: Prediction) -> Prediction:
    """Return predictions of the same form, each the function of one of these."""
    found: Prediction = tree_map(function, prediction)
    return found


def loss_and_gradient(loss: Loss, batch: Batch, others: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch that another one follows, and its gradient (B, N) at the first one's predictions."""
    given = mapped(lambda value: value.detach().clone().requires_grad_(), batch[0])
    with torch.enable_grad():
        joined = tree_map(lambda one, two: torch.cat([one, two.detach()]), given, others[0])
        value = loss(joined, torch.cat([batch[1], others[1]]))
        found = torch.autograd.grad(value, tree_leaves(given), materialize_grads=True)
    return value, torch.cat([gradient.reshape(len(gradient), -1) for gradient in found], 1)
