"""Operators on images of other ranks than those that have a rule, and windows.

What works along one dimension is a picture of height one, and a pool of images without channels one of images with a
single channel. Unfolding is a grouped convolution with the taps of the identity, and folding the transposed one: each
is the other's gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """One dimension as two."""
    if x.ndim != 3:
        return NotImplemented
    moved = [1, *stride], [0, *padding], [1, *dilation], transposed, [0, *output_padding], groups
    return aten.convolution(x.unsqueeze(2), weight.unsqueeze(2), bias, *moved).squeeze(2)


def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> Any:
    """One dimension as two."""
    if x.ndim != 3:
        return NotImplemented
    images = (value.unsqueeze(2) for value in (gradient, x, weight))
    moved = [1, *stride], [0, *padding], [1, *dilation], transposed, [0, *output_padding], groups
    dx, dw, db = aten.convolution_backward(*images, bias, *moved, mask)
    return None if dx is None else dx.squeeze(2), None if dw is None else dw.squeeze(2), db


def _flat(operator: Any) -> Callable[..., Tensor]:
    """Return interpolation along one dimension, of an operator for two."""

    def function(x: Tensor, size: Sequence[int], *rest: Any) -> Tensor:
        found: Tensor = operator(x.unsqueeze(2), [1, *size], *_options(rest))
        return found.squeeze(2)

    return function


def _options(rest: Sequence[Any]) -> list[Any]:
    """Return whether corners are aligned, where that is said, and the scales in two dimensions."""
    aligned = [value for value in rest if isinstance(value, bool)]
    return [*aligned, None, next((value for value in rest if isinstance(value, float)), None)]


def _flat_backward(operator: Any) -> Callable[..., Tensor]:
    """Return the gradient of interpolation along one dimension, of an operator for two."""

    def function(gradient: Tensor, size: Sequence[int], source: Sequence[int], *rest: Any) -> Tensor:
        shape = [*source[:2], 1, *source[2:]]
        found: Tensor = operator(gradient.unsqueeze(2), [1, *size], shape, *_options(rest))
        return found.squeeze(2)

    return function


def uneven_max_pool(x: Tensor, output: Sequence[int]) -> Any:
    """Results: the maxima of windows that are not all as large, and where in their channel they were.

    A window that is shorter than the longest has its last element several times.
    """
    count = len(output)
    lengths = x.shape[-count:]
    if all(length % target == 0 for length, target in zip(lengths, output, strict=True)):
        return NotImplemented
    window, place = x, torch.zeros([1] * 2 * count, dtype=torch.int64)
    for i, (length, target) in enumerate(zip(lengths, output, strict=True)):
        starts = [k * length // target for k in range(target)]
        ends = [-(-(k + 1) * length // target) for k in range(target)]
        longest = max(end - start for start, end in zip(starts, ends, strict=True))
        index = torch.tensor(
            [[min(start + k, end - 1) for k in range(longest)] for start, end in zip(starts, ends, strict=True)]
        )
        dim = x.ndim - count + 2 * i
        picked = window.index_select(dim, index.flatten())
        window = picked.reshape(*picked.shape[:dim], target, longest, *picked.shape[dim + 1 :])
        shape = [1] * 2 * count
        shape[2 * i : 2 * i + 2] = target, longest
        place = place * length + index.reshape(shape)
    outer = x.ndim - count
    order = [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]
    flat = window.permute(*range(outer), *(outer + d for d in order)).flatten(x.ndim)  # (…, windows, elements)
    values, found = flat.max(-1)
    places = place.permute(order).flatten(count).expand_as(flat)
    return values, places.gather(-1, found.unsqueeze(-1)).squeeze(-1)


def unfold(
    x: Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """(B, C, H, W) to the window at each place, (B, C · taps, places)."""
    channels = x.shape[1]
    taps = _taps(x, kernel, channels)
    found: Tensor = aten.convolution(x, taps, None, stride, padding, dilation, False, [0, 0], channels)
    return found.flatten(2)


def fold(
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """(B, C · taps, places) to (B, C, H, W), where windows meet their sum."""
    channels = x.shape[1] // (kernel[0] * kernel[1])
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    places = [(size[i] + 2 * padding[i] - reach[i]) // stride[i] + 1 for i in range(2)]
    rest = [size[i] - ((places[i] - 1) * stride[i] - 2 * padding[i] + reach[i]) for i in range(2)]
    windows = x.reshape(x.shape[0], x.shape[1], *places)
    taps = _taps(x, kernel, channels)
    found: Tensor = aten.convolution(windows, taps, None, stride, padding, dilation, True, rest, channels)
    return found


def _taps(x: Tensor, kernel: Sequence[int], channels: int) -> Tensor:
    """Return a kernel for each tap of each channel, which takes that tap alone: (C · taps, 1, h, w)."""
    count = kernel[0] * kernel[1]
    place = torch.arange(count, device=x.device)
    identity = (place.unsqueeze(1) == place).to(x.dtype)
    return identity.reshape(count, 1, kernel[0], kernel[1]).repeat(channels, 1, 1, 1)


def _with_channel(operator: Any, rank: int) -> Callable[..., Any]:
    """Return the operator for images of a rank without channel or batch, which it treats alike: one is put in."""

    def function(x: Tensor, *rest: Any) -> Any:
        if x.ndim == rank:
            return NotImplemented
        place = 1 - rank  # before the dimensions that are pooled
        images = [value.unsqueeze(place) if isinstance(value, Tensor) else value for value in rest]
        found = operator(x.unsqueeze(place), *images)
        if isinstance(found, tuple):
            return tuple(value.squeeze(place) for value in found)
        return found.squeeze(place)

    return function


POOLS = {
    4: (
        *(aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default),
        *(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool2d_backward.default),
        *(aten.avg_pool2d.default, aten.avg_pool2d_backward.default),
        *(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default),  # noqa: SLF001
        *(aten.reflection_pad2d.default, aten.reflection_pad2d_backward.default),
        *(aten.replication_pad2d.default, aten.replication_pad2d_backward.default),
    ),
    5: (
        *(aten.max_pool3d_with_indices.default, aten.max_pool3d_with_indices_backward.default),
        *(aten.adaptive_max_pool3d.default, aten.adaptive_max_pool3d_backward.default),
        *(aten.avg_pool3d.default, aten.avg_pool3d_backward.default),
        *(aten._adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d_backward.default),  # noqa: SLF001
        *(aten.reflection_pad3d.default, aten.reflection_pad3d_backward.default),
        *(aten.replication_pad3d.default, aten.replication_pad3d_backward.default),
    ),
}
"""Operators that treat channels and samples alike, by the rank of images with both."""


def _adaptive_max_pool(operator: Any, rank: int) -> Callable[..., Any]:
    """Return the operator for images without channel or batch, and for windows that are not all as large."""
    with_channel = _with_channel(operator, rank)

    def function(x: Tensor, output: Sequence[int]) -> Any:
        return with_channel(x, output) if x.ndim < rank else uneven_max_pool(x, output)

    return function


TABLE: dict[Any, Any] = {
    **{pool: _with_channel(pool, rank) for rank, pools in POOLS.items() for pool in pools},
    aten.adaptive_max_pool2d.default: _adaptive_max_pool(aten.adaptive_max_pool2d.default, 4),
    aten.adaptive_max_pool3d.default: _adaptive_max_pool(aten.adaptive_max_pool3d.default, 5),
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
    aten.upsample_linear1d.default: _flat(aten.upsample_bilinear2d),
    aten.upsample_linear1d_backward.default: _flat_backward(aten.upsample_bilinear2d_backward),
    aten.upsample_nearest1d.default: _flat(aten.upsample_nearest2d),
    aten.upsample_nearest1d_backward.default: _flat_backward(aten.upsample_nearest2d_backward),
    aten._upsample_nearest_exact1d.default: _flat(aten._upsample_nearest_exact2d),  # noqa: SLF001
    aten._upsample_nearest_exact1d_backward.default: _flat_backward(aten._upsample_nearest_exact2d_backward),  # noqa: SLF001
    aten.im2col.default: unfold,
    aten.col2im.default: fold,
}
