"""Losses for dense tasks. A pixel without a label (NaN, or class 0 of a segmentation) counts for nothing.

A batch without any label has loss zero, not NaN, so that one empty crop does not spoil an epoch.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def masked_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the labelled elements; both (B, C, H, W), NaN in the target where there is no label."""
    known = torch.logical_not(torch.isnan(target))
    count = known.to(prediction.dtype).sum().clamp(min=1.0)
    return torch.where(known, prediction - target, 0.0).abs().sum() / count


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of two tensors of one shape."""
    return (prediction - target).abs().mean()


def pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels: logits (B, K, H, W), target (B, H, W) with class 0 for no label."""
    count = (target != 0).to(logits.dtype).sum().clamp(min=1.0)
    return F.cross_entropy(logits, target, ignore_index=0, reduction="sum") / count
