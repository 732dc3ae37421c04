"""Operators that order the elements along a dimension, or combine all up to each."""

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def kth_value(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Results: the k-th smallest along a dimension, and its place."""
    if not x.ndim:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, places = torch.sort(x, dim=dim)
    found = values.select(dim, k - 1), places.select(dim, k - 1)
    return (found[0].unsqueeze(dim), found[1].unsqueeze(dim)) if keepdim else found


def median(x: Tensor) -> Tensor:
    """Return the median of all elements, the lower of two."""
    return median_along(x.reshape(-1), 0)[0]


def median_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Results: the median along a dimension, the lower of two, and its place."""
    length = x.shape[dim] if x.ndim else 1
    return kth_value(x, (length + 1) // 2, dim, keepdim)


def median_of_numbers(x: Tensor) -> Tensor:
    """Return the median of all elements that are numbers."""
    return median_of_numbers_along(x.reshape(-1), 0)[0]


def median_of_numbers_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Results: the median of what are numbers along a dimension, and its place."""
    if not x.ndim:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, places = torch.sort(torch.where(x.isnan(), torch.inf, x), dim=dim)
    middle = ((~x.isnan()).to(torch.int64).sum(dim, keepdim=True) - 1).clamp(min=0) // 2
    empty = x.isnan().all(dim, keepdim=True)
    found = torch.where(empty, torch.nan, values.gather(dim, middle)), places.gather(dim, middle)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


def mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Results: the most frequent value along a dimension, the smallest of several, and its last place."""
    if not x.ndim:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    turned = x.movedim(dim, -1)
    same = turned.unsqueeze(-1) == turned.unsqueeze(-2)  # (…, K, K)
    count = same.to(x.dtype).sum(-1)
    most = count.amax(-1, keepdim=True)
    value = torch.where(count == most, turned, torch.inf).amin(-1, keepdim=True)
    place = torch.arange(turned.shape[-1], device=x.device)
    last = torch.where(turned == value, place, -1).amax(-1, keepdim=True)
    found = value.movedim(-1, dim), last.movedim(-1, dim)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


def running_product(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Multiply all elements up to each, (…, K), as rows of a triangle, (…, K, K)."""
    x = x if dtype is None else x.to(dtype)
    return torch.prod(_triangle(x, dim, 1.0), -1).movedim(-1, dim) if x.ndim else x.clone()


def running_log_sum(x: Tensor, dim: int) -> Tensor:
    """Return log Σ exp of all elements up to each."""
    return torch.logsumexp(_triangle(x, dim, -torch.inf), -1).movedim(-1, dim) if x.ndim else x.clone()


def running_largest(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Results: the largest element up to each, and its last place."""
    return _running_extreme(x, dim, -torch.inf, torch.amax)


def running_smallest(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Results: the smallest element up to each, and its last place."""
    return _running_extreme(x, dim, torch.inf, torch.amin)


def _running_extreme(x: Tensor, dim: int, other: float, extreme: Any) -> tuple[Tensor, Tensor]:
    if not x.ndim:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    rows = _triangle(x, dim, other)
    values = extreme(rows, -1, keepdim=True)
    place = torch.arange(x.shape[dim], device=x.device)
    last = torch.where((rows == values) & (place <= place.unsqueeze(1)), place, 0).amax(-1)
    return values.squeeze(-1).movedim(-1, dim), last.movedim(-1, dim)


def _triangle(x: Tensor, dim: int, other: float) -> Tensor:
    """Return for each place along a dimension the elements up to it, and another number for the rest: (…, K, K)."""
    place = torch.arange(x.shape[dim], device=x.device)
    return torch.where(place <= place.unsqueeze(1), x.movedim(dim, -1).unsqueeze(-2), other)


TABLE: dict[Any, Any] = {
    aten.kthvalue.default: kth_value,
    aten.median.default: median,
    aten.median.dim: median_along,
    aten.nanmedian.default: median_of_numbers,
    aten.nanmedian.dim: median_of_numbers_along,
    aten.mode.default: mode,
    aten.cumprod.default: running_product,
    aten.logcumsumexp.default: running_log_sum,
    aten.cummax.default: running_largest,
    aten.cummin.default: running_smallest,
}
