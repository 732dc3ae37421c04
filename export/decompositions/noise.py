"""Random numbers, all from one operator: a number drawn uniformly from 0 to 1 for each element (aten.rand).

What a graph draws follows from its seed (export.lowering.dropout), so a forward pass that is recomputed draws the same,
and PyTorch can be made to draw it too (export.parity.seeded_noise).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


DRAWN = frozenset({aten.bernoulli.p, aten.rand.default})
"""The operators that draw in a graph."""


def uniform_like(x: Tensor, **_: Any) -> Tensor:
    """Draw numbers from 0 to 1."""
    return torch.rand(x.shape)


def uniform(x: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    """Draw numbers from `low` to `high`."""
    return torch.rand(x.shape) * (high - low) + low


def normal(size: Sequence[int], **_: Any) -> Tensor:
    """Draw normal numbers (Box and Muller, Ann. Math. Statist. 29, 1958)."""
    distance, turn = 1 - torch.rand(size), torch.rand(size)
    return torch.sqrt(-2 * torch.log(distance)) * torch.cos(2 * math.pi * turn)


def normal_like(x: Tensor, **_: Any) -> Tensor:
    """Draw normal numbers in the shape of x."""
    return normal(x.shape)


def normal_around(x: Tensor, mean: float = 0.0, deviation: float = 1.0, **_: Any) -> Tensor:
    """Draw normal numbers in the shape of x, of a mean and a deviation."""
    return normal(x.shape) * deviation + mean


def normal_of(mean: Any, deviation: Any = 1.0, size: Sequence[int] | None = None, **_: Any) -> Tensor:
    """Draw normal numbers whose means or deviations are tensors, or of a size."""
    if size is None:
        size = (0 * mean + 0 * deviation).shape
    found: Tensor = normal(size) * deviation + mean
    return found


def exponential(x: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    """Draw numbers of the density rate · exp(−rate · x): above zero, as PyTorch's, for their logarithms are taken."""
    return (-torch.log(1 - torch.rand(x.shape))).clamp(min=2.0**-25) / rate


def truths(x: Tensor, **_: Any) -> Tensor:
    """Draw ones with the probabilities x, else zeros."""
    return (torch.rand(x.shape) < x).to(x.dtype)


def integers(low: int, high: int, size: Sequence[int], **_: Any) -> Tensor:
    """Draw integers from `low` to below `high`."""
    return torch.floor(torch.rand(size) * (high - low)).to(torch.int64) + low


def leaky(
    x: Tensor, noise: Tensor, low: float = 1 / 8, high: float = 1 / 3, training: bool = False, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """Results: x times slopes, and the slopes: one where x is positive, else drawn between two."""
    del noise
    drawn = torch.rand(x.shape) * (high - low) + low if training else torch.full_like(x, (low + high) / 2)
    slopes = torch.where(x <= 0, drawn, 1.0)
    return x * slopes, slopes


TABLE: dict[Any, Any] = {
    aten.rand_like.default: uniform_like,
    aten.uniform.default: uniform,
    aten.randn.default: normal,
    aten.randn_like.default: normal_like,
    aten.normal_functional.default: normal_around,
    aten.normal.Tensor_Tensor: normal_of,
    aten.normal.Tensor_float: normal_of,
    aten.normal.float_Tensor: normal_of,
    aten.normal.float_float: normal_of,
    aten.exponential.default: exponential,
    aten.bernoulli.default: truths,
    aten.bernoulli.Tensor: lambda x, p, **_: truths(p.expand_as(x)).to(x.dtype),
    aten.rrelu_with_noise_functional.default: leaky,
    aten.randint.default: lambda high, size, **_: integers(0, high, size),
    aten.randint.low: integers,
}
"""Each of the shape that its arguments say, in float32; the generator that they name is not asked."""

IN_PLACE: dict[Any, Any] = {
    aten.uniform_.default: uniform,
    aten.normal_.default: normal_around,
    aten.exponential_.default: exponential,
}
"""What changes a tensor into what the function draws: functionalisation makes it one of the table."""
