"""Products, distances and reductions of pairs, rows and bags."""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from export.functions.refused import Refused


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ x · W · y, one matrix W for each output."""
    found = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return found if bias is None else found + bias


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """Return the distances of all pairs, (…, P, R); a distance of zero has no slope."""
    del compute_mode
    return _norm(x.unsqueeze(-2) - y.unsqueeze(-3), p)


def pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """Return the distances of all pairs of different rows."""
    if x.shape[0] < 2:
        return x[:0].sum(1)
    rows, columns = zip(*itertools.combinations(range(x.shape[0]), 2), strict=True)
    return _norm(x.index_select(0, torch.tensor(rows)) - x.index_select(0, torch.tensor(columns)), p)


def _norm(difference: Tensor, p: float) -> Tensor:
    size = difference.abs()
    if p == 0:
        return (size != 0).to(size.dtype).sum(-1) + 0 * size.sum(-1)  # whose slope is zero
    if p == 1:
        return size.sum(-1)
    if math.isinf(p):
        return size.amax(-1)
    equal = (size == 0).all(-1, keepdim=True)
    powers = (torch.where(size == 0, 1.0, size) ** p) * (size != 0).to(size.dtype)
    total = powers.sum(-1, keepdim=True)
    return torch.where(equal, 0.0, torch.where(equal, 1.0, total) ** (1 / p)).squeeze(-1)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Give a weight the norms g along all dimensions but one (Salimans and Kingma, NeurIPS 2016)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def embedding_bag(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Reduce rows of a table: those of each row of x, or of each stretch of x from an offset on."""
    del norm_type, sparse
    if max_norm is not None or scale_grad_by_freq:
        raise Refused("embedding_bag with max_norm or scale_grad_by_freq", "leave both out")
    rows = F.embedding(x, weight)  # (…, D)
    counted = torch.ones_like(x, dtype=torch.bool) if padding_idx is None else x != padding_idx % weight.shape[0]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if x.ndim == 2:
        member = counted.unsqueeze(1)  # (B, 1, L)
        rows = rows.unsqueeze(1)  # (B, 1, L, D)
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        bag = (torch.arange(x.shape[0]) >= starts.unsqueeze(1)).to(torch.int64).sum(0) - 1  # (L,)
        member = (bag == torch.arange(starts.shape[0]).unsqueeze(1)) & counted  # (bags, L)
        rows = rows.unsqueeze(0)  # (1, L, D)
    share = member.unsqueeze(-1).to(rows.dtype)
    if mode == "max":
        some = member.any(-1, keepdim=True)
        found = torch.where(member.unsqueeze(-1), rows, -torch.inf).amax(-2)
        found = torch.where(some, found, 0.0)
    else:
        found = (rows * share).sum(-2)
        if mode == "mean":
            found = found / share.sum(-2).clamp(min=1)
    return found.squeeze(1) if x.ndim == 2 else found


def linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """Compute cross entropy of a linear layer in one piece; `options` say how torch computes it in several."""
    del options
    return F.linear_cross_entropy(*args, **kwargs)
