"""Losses. What has no label (NaN, or an ignored class) counts for nothing.

A batch without any label has loss zero, not NaN, so that one empty crop does not spoil an epoch. All are means over
the labelled elements of the batch. A loss with settings is a function that gives a loss: `cross_entropy(ignore=255)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def masked_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the labelled elements; both of one shape, NaN in the target where there is no label."""
    known, count = _known(prediction, target)
    return torch.where(known, prediction - target, 0.0).abs().sum() / count


def masked_l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the labelled elements, as `masked_l1`."""
    known, count = _known(prediction, target)
    return torch.where(known, prediction - target, 0.0).square().sum() / count


@dataclass(frozen=True)
class MaskedHuber:
    """Mean Huber loss over the labelled elements: squared up to an error of `delta`, linear above."""

    delta: float = 1.0

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        known, count = _known(prediction, target)
        error = torch.where(known, prediction - target, 0.0).abs()
        bounded = error.clamp(max=self.delta)
        return (bounded * (error - 0.5 * bounded)).sum() / count


def masked_huber(delta: float = 1.0) -> MaskedHuber:
    """Mean Huber loss over the labelled elements: squared up to an error of `delta`, linear above."""
    return MaskedHuber(delta)


def masked_binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits over the labelled elements; the target is 0 to 1, or NaN for no label."""
    known, count = _known(logits, target)
    wanted = torch.where(known, target, 0.0)
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return torch.where(known, each, 0.0).sum() / count


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of two tensors of one shape."""
    return (prediction - target).abs().mean()


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of two tensors of one shape."""
    return (prediction - target).square().mean()


def pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels: logits (B, K, H, W), target (B, H, W) with class 0 for no label."""
    count = (target != 0).to(logits.dtype).sum().clamp(min=1.0)
    return F.cross_entropy(logits, target, ignore_index=0, reduction="sum") / count


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy of logits (B, K, …) and classes (B, …), with the settings of `cross_entropy`."""

    ignore: int | None
    weights: tuple[float, ...] | None
    smoothing: float

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        known = torch.ones_like(target, dtype=torch.bool) if self.ignore is None else target != self.ignore
        scale = None if self.weights is None else torch.tensor(self.weights, dtype=logits.dtype)
        if scale is None:
            count = known.to(logits.dtype).sum()
        else:
            each = scale[torch.where(known, target, 0).reshape(-1)].reshape(target.shape)
            count = torch.where(known, each, 0.0).sum()
        total = F.cross_entropy(
            logits,
            target,
            scale,
            ignore_index=-100 if self.ignore is None else self.ignore,
            reduction="sum",
            label_smoothing=self.smoothing,
        )
        return total / count.clamp(min=1e-6)


def cross_entropy(
    *, ignore: int | None = None, weights: Sequence[float] | None = None, smoothing: float = 0.0
) -> CrossEntropy:
    """Cross-entropy of logits (B, K, …) and classes (B, …).

    An `ignore`d class counts for nothing; `weights` (K,) make classes count more or less, and the mean is over the
    weights, as PyTorch's; `smoothing` is the part of the target that is spread over all classes.
    """
    return CrossEntropy(ignore=ignore, weights=None if weights is None else tuple(weights), smoothing=smoothing)


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of the angle between vectors along dimension 1, over places whose target has a length.

    As for surface normals (B, 3, H, W); a place whose target is NaN or zero has no label.
    """
    known = torch.logical_not(torch.isnan(target))
    wanted = torch.where(known, target, 0.0)
    length = wanted.square().sum(1, keepdim=True)
    labelled = (length > 0).to(prediction.dtype)
    along = (prediction * wanted).sum(1, keepdim=True)
    lengths = (prediction.square().sum(1, keepdim=True) + 1e-8).sqrt() * (length + 1e-8).sqrt()
    return ((1 - along / lengths) * labelled).sum() / labelled.sum().clamp(min=1.0)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss of binary masks (B, K, …): 1 − 2·Σpy / (Σp + Σy), the mean over samples and channels.

    p is the sigmoid of the logits (Milletari et al., V-Net, 3DV 2016, without squares); a NaN target has no label.
    """
    known = torch.logical_not(torch.isnan(target))
    wanted = torch.where(known, target, 0.0).flatten(2)
    found = torch.where(known, torch.sigmoid(logits), 0.0).flatten(2)
    both = (found * wanted).sum(2)
    return (1 - (2 * both + 1) / (found.sum(2) + wanted.sum(2) + 1)).mean()


def _known(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a mask of the labelled elements and their number, at least 1."""
    known = torch.logical_not(torch.isnan(target))
    return known, known.to(prediction.dtype).sum().clamp(min=1.0)
