"""Operators that look elements up, or overwrite them, by places that are known or computed.

None of them is a view: what is written with others is a copy, and a change of it in place would be lost.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, first: int = 0, second: int = 1) -> Tensor:
    """Overwrite a diagonal."""
    turned = torch.movedim(x, (first, second), (-2, -1))
    height, width = turned.shape[-2:]
    down, right = max(-offset, 0), max(offset, 0)
    place = torch.arange(min(height - down, width - right), device=x.device)
    rows, columns = place + down if down else place, place + right if right else place
    written = aten.index_put.default(turned, [*[None] * (x.ndim - 2), rows, columns], source)
    return torch.movedim(written, (-2, -1), (first, second))


def windows_backward(gradient: Tensor, shape: Sequence[int], dim: int, size: int, step: int) -> Tensor:
    """Add up what each element got in all windows that hold it."""
    if not shape:
        return gradient.reshape(())
    dim %= len(shape)
    starts = torch.arange(0, shape[dim] - size + 1, step, device=gradient.device)
    places = starts.unsqueeze(1) + torch.arange(size, device=gradient.device)  # (windows, size)
    flat = gradient.movedim(-1, dim + 1).flatten(dim, dim + 1)
    return gradient.new_zeros(shape).index_add(dim, places.flatten(), flat)


def same_places(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Any:
    """Pass a tensor on whose elements stay where they are: in its own form, or row by row in another.

    torch's own pools write the first with channels last, and views of what is changed in place are made anew so.
    """
    if offset not in (None, x.storage_offset()):
        return NotImplemented
    if tuple(size) == x.shape and _agree(size, stride, x.stride()):
        return aten.alias.default(x)
    by_rows = [prod(size[i + 1 :]) for i in range(len(size))]
    if prod(size) == x.numel() and x.is_contiguous() and _agree(size, stride, by_rows):
        return x.reshape(tuple(size))
    return NotImplemented


def _agree(size: Sequence[int], one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two strides are the same, but where a dimension has one element."""
    return all(n == 1 or this == that for n, this, that in zip(size, one, other, strict=True))


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Overwrite elements where a mask holds by those of the source in turn."""
    x, mask = torch.broadcast_tensors(x, mask)  # type: ignore[no-untyped-call]
    turn = mask.reshape(-1).to(torch.int64).cumsum(0) - 1
    taken = source.reshape(-1).gather(0, turn.clamp(min=0)).reshape(x.shape)
    return torch.where(mask, taken, x)


def masked_scatter_backward(gradient: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """Give each element of the source the gradient of the place that it was put at."""
    mask = mask.expand_as(gradient)
    turn = mask.reshape(-1).to(torch.int64).cumsum(0) - 1
    placed = torch.where(mask, gradient, 0.0).reshape(-1)
    zeros = gradient.new_zeros(tuple(size))
    return zeros.reshape(-1).scatter_add(0, turn.clamp(min=0), placed).reshape(zeros.shape)


def put_where(x: Tensor, indices: Sequence[Tensor | None], value: Tensor, accumulate: bool = False) -> Any:
    """Overwrite, or add to, what a mask chooses, by one number: where all that it chooses has a place of its own."""
    if len(indices) != 1 or indices[0] is None or indices[0].dtype != torch.bool or value.numel() != 1:
        return NotImplemented
    mask = indices[0].reshape(*indices[0].shape, *[1] * (x.ndim - indices[0].ndim))
    number = value.reshape(())
    return torch.where(mask, x + number if accumulate else number, x)


def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Overwrite elements, or add to them, by their places in the whole tensor."""
    flat, places, values = x.reshape(-1), index.reshape(-1), source.reshape(-1)
    found: Tensor = aten.index_put.default(flat, [places], values, accumulate)
    return found.reshape(x.shape)


def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Reduce slices of the source into those that an index points to."""
    dim %= x.ndim
    places = index.reshape([-1 if i == dim else 1 for i in range(x.ndim)]).expand_as(source)
    return x.scatter_reduce(dim, places, source, reduce, include_self=include_self)


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """Write a mean with a sum and a count, and what leaves an element's own value out with its reduction's identity."""
    if reduce in ("amax", "amin"):
        if include_self:
            return NotImplemented
        empty = x.scatter(dim, index, -torch.inf if reduce == "amax" else torch.inf)
        return aten.scatter_reduce.two(empty, dim, index, source, reduce)
    neutral = 1.0 if reduce == "prod" else 0.0
    start = x if include_self else x.scatter(dim, index, neutral)
    if reduce != "mean":
        return NotImplemented if include_self else aten.scatter_reduce.two(start, dim, index, source, reduce)
    ones = torch.ones_like(source)
    count = (torch.ones_like(x) if include_self else torch.zeros_like(x)).scatter_add(dim, index, ones)
    return start.scatter_add(dim, index, source) / count.clamp(min=1)


TABLE: dict[Any, Any] = {
    aten.as_strided.default: same_places,
    aten.diagonal_scatter.default: diagonal_scatter,
    aten.unfold_copy.default: aten.unfold.default,
    aten.unfold_backward.default: windows_backward,
    aten.masked_scatter.default: masked_scatter,
    aten.masked_scatter_backward.default: masked_scatter_backward,
    aten.put.default: put,
    aten.index_put.default: put_where,
    aten.index_reduce.default: index_reduce,
    aten.scatter_reduce.two: scatter_reduce,
}
