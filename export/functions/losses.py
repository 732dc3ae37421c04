"""Losses whose own operators have no gradient in a graph, or that look at their data."""

import math

import torch
from torch import Tensor


def gaussian_nll_loss(
    x: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """Return the negative log-likelihood of a normal distribution; that no variance is negative is not looked at."""
    if isinstance(var, float):
        var = var * torch.ones_like(x)
    if var.shape != x.shape and var.ndim == x.ndim - 1:
        var = var.unsqueeze(-1)
    with torch.no_grad():
        below = torch.clamp(var, min=eps) - var
    var = var + below
    loss = 0.5 * (torch.log(var) + (x - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduced(loss, reduction)


def multi_margin_loss(
    x: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ over other classes of max(0, margin − x_target + x)ᵖ, by the number of classes."""
    rows, targets = (x.unsqueeze(0), target.reshape(1)) if x.ndim < 2 else (x, target)
    place = targets.unsqueeze(1)
    excess = (margin - rows.gather(1, place) + rows).clamp(min=0) ** p
    other = torch.arange(rows.shape[1], device=x.device) != place
    if weight is not None:
        excess = excess * weight[targets].unsqueeze(1)
    loss = (excess * other.to(x.dtype)).sum(1) / rows.shape[1]
    return reduced(loss if x.ndim > 1 else loss.squeeze(0), _named(reduction, size_average, reduce))


def multilabel_margin_loss(
    x: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ over labels and other classes of max(0, 1 − x_label + x), by the number of classes; −1 ends the labels."""
    rows, targets = (x.reshape(1, -1), target.reshape(1, -1)) if x.ndim < 2 else (x, target)
    counted = (targets < 0).to(torch.int64).cumsum(1) == 0  # (B, C)
    labels = targets.clamp(min=0)
    classes = torch.arange(rows.shape[1], device=x.device)
    is_label = ((labels.unsqueeze(2) == classes) & counted.unsqueeze(2)).any(1)  # (B, C)
    excess = (1 - rows.gather(1, labels).unsqueeze(2) + rows.unsqueeze(1)).clamp(min=0)  # (B, labels, C)
    pairs = counted.unsqueeze(2) & ~is_label.unsqueeze(1)
    loss = (excess * pairs.to(x.dtype)).sum((1, 2)) / rows.shape[1]
    return reduced(loss if x.ndim > 1 else loss.squeeze(0), _named(reduction, size_average, reduce))


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """Return the mean or the sum of a loss, or all of it."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _named(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """Return the reduction that older arguments stand for."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"
