"""Operators that are written with others while a model is traced: by torch itself, and some by us.

What works along one dimension is a picture of height one. Unfolding is a grouped convolution with the taps of the
identity, and folding the transposed one: each is the other's gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

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


def linear(x: Tensor, size: Sequence[int], aligned: bool, scale: float | None = None) -> Tensor:
    """Linear interpolation."""
    found: Tensor = aten.upsample_bilinear2d(x.unsqueeze(2), [1, *size], aligned, None, scale)
    return found.squeeze(2)


def linear_backward(
    gradient: Tensor, size: Sequence[int], source: Sequence[int], aligned: bool, scale: float | None = None
) -> Tensor:
    """Return the gradient of linear interpolation."""
    shape = [*source[:2], 1, *source[2:]]
    found: Tensor = aten.upsample_bilinear2d_backward(gradient.unsqueeze(2), [1, *size], shape, aligned, None, scale)
    return found.squeeze(2)


def nearest(x: Tensor, size: Sequence[int], scale: float | None = None) -> Tensor:
    """Take the nearest element."""
    found: Tensor = aten.upsample_nearest2d(x.unsqueeze(2), [1, *size], None, scale)
    return found.squeeze(2)


def nearest_backward(
    gradient: Tensor, size: Sequence[int], source: Sequence[int], scale: float | None = None
) -> Tensor:
    """Return the gradient of taking the nearest element."""
    shape = [*source[:2], 1, *source[2:]]
    found: Tensor = aten.upsample_nearest2d_backward(gradient.unsqueeze(2), [1, *size], shape, None, scale)
    return found.squeeze(2)


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


DECOMPOSED: dict[Any, Any] = {
    **get_decompositions(
        [
            *(aten.mse_loss, aten.mse_loss_backward, aten.smooth_l1_loss, aten.smooth_l1_loss_backward),
            *(aten.huber_loss, aten.huber_loss_backward, aten.binary_cross_entropy, aten.binary_cross_entropy_backward),
            *(aten.binary_cross_entropy_with_logits, aten.log_sigmoid_forward, aten.log_sigmoid_backward),
            *(aten.soft_margin_loss, aten.soft_margin_loss_backward),
            *(aten.elu, aten.elu_backward, aten.celu, aten.softplus, aten.softplus_backward, aten.mish),
            *(aten.mish_backward, aten._prelu_kernel, aten._prelu_kernel_backward, aten.glu, aten.glu_backward),  # noqa: SLF001
            *(
                aten.logit,
                aten.logit_backward,
                aten.lerp,
                aten.addcmul,
                aten.xlogy,
                aten.logsumexp,
                aten.linalg_vector_norm,
                aten.norm,
                aten.rot90,
            ),
            *(aten.mv, aten.baddbmm, aten.linspace, aten.index_select, aten.index_add),
            *(aten.stack, aten.unbind, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle),
        ]
    ),
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
    aten.upsample_linear1d.default: linear,
    aten.upsample_linear1d_backward.default: linear_backward,
    aten.upsample_nearest1d.default: nearest,
    aten.upsample_nearest1d_backward.default: nearest_backward,
    aten.exp2.default: lambda x: torch.exp(x * math.log(2)),
    aten.log2.default: lambda x: torch.log(x) / math.log(2),
    aten.log10.default: lambda x: torch.log(x) / math.log(10),
    aten.im2col.default: unfold,
    aten.col2im.default: fold,
}
