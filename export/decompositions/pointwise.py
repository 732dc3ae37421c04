"""Elementwise operators for which ONNX has no operator of its own."""

import math
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

NEAR = (
    *(2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4, -1.25372503e-3, -4.17768164e-3),
    *(0.246640727, 1.50140941),
)
FAR = (
    *(-2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3, -7.6224613e-3, 9.43887047e-3),
    *(1.00167406, 2.83297682),
)
"""Coefficients of erf⁻¹(x) / x, the highest power first."""


def angle_of(y: Tensor, x: Tensor) -> Tensor:
    """Return the angle of the point (x, y), from −π to π."""
    slope = torch.atan(y / x)
    turn = torch.where(y < 0, -math.pi, math.pi)
    beside = torch.where(y > 0, math.pi / 2, torch.where(y < 0, -math.pi / 2, 0.0))
    return torch.where(x == 0, beside, torch.where(x < 0, slope + turn, slope))


def with_sign(x: Tensor, y: Any) -> Tensor:
    """|x| with the sign of y."""
    negative = torch.signbit(y) if isinstance(y, Tensor) else math.copysign(1.0, y) < 0
    return torch.where(negative, -x.abs(), x.abs()) if isinstance(negative, Tensor) else x.abs() * (1 - 2 * negative)


def sign_bit(x: Tensor) -> Tensor:
    """Tell a negative number, and minus zero, by its reciprocal."""
    return (x < 0) | ((x == 0) & (1 / x < 0))


def larger(x: Tensor, y: Tensor) -> Tensor:
    """Return the larger of two numbers, the number where one of them is none."""
    return torch.where(x.isnan(), y, torch.where(y.isnan(), x, torch.maximum(x, y)))


def smaller(x: Tensor, y: Tensor) -> Tensor:
    """Return the smaller of two numbers, the number where one of them is none."""
    return torch.where(x.isnan(), y, torch.where(y.isnan(), x, torch.minimum(x, y)))


def inverse_erf(x: Tensor) -> Tensor:
    """Return erf⁻¹(x), by polynomials near zero and near ±1 (Giles, GPU Computing Gems, 2012, single precision)."""
    w = -torch.log((1 - x) * (1 + x))
    near, far = torch.full_like(x, NEAR[0]), torch.full_like(x, FAR[0])
    for inner, outer in zip(NEAR[1:], FAR[1:], strict=True):
        near = near * (w - 2.5) + inner
        far = far * (torch.sqrt(w) - 3) + outer
    found = torch.where(w < 5, near, far) * x
    return torch.where(x.abs() == 1, x * math.inf, found)


def rounded(x: Tensor, *, decimals: int) -> Tensor:
    """Round to so many digits."""
    scale = 10.0 ** abs(decimals)
    return torch.round(x * scale) / scale if decimals > 0 else torch.round(x / scale) * scale


def phase(x: Tensor) -> Any:
    """Return the angle of a real number: zero, or π where it is negative."""
    if x.is_complex():
        return NotImplemented
    return torch.where(x.isnan(), x, torch.where(x < 0, math.pi, 0.0))


TABLE: dict[Any, Any] = {
    aten.angle.default: phase,
    aten.log2.default: lambda x: torch.log(x) / math.log(2),
    aten.log10.default: lambda x: torch.log(x) / math.log(10),
    aten.exp2.default: lambda x: torch.exp(x * math.log(2)),
    aten.atan2.default: angle_of,
    aten.hypot.default: lambda x, y: torch.sqrt(x * x + y * y),
    aten.copysign.Tensor: with_sign,
    aten.copysign.Scalar: with_sign,
    aten.signbit.default: sign_bit,
    aten.fmax.default: larger,
    aten.fmin.default: smaller,
    aten.erfc.default: lambda x: 1 - torch.erf(x),
    aten.erfinv.default: inverse_erf,
    aten.round.decimals: rounded,
    aten.addbmm.default: lambda x, a, b, beta=1, alpha=1: beta * x + alpha * torch.bmm(a, b).sum(0),
    aten.softshrink_backward.default: lambda gradient, x, width: torch.where(x.abs() > width, gradient, 0.0),
    aten.hardshrink_backward.default: lambda gradient, x, width: torch.where(x.abs() > width, gradient, 0.0),
    aten.conj_physical.default: torch.conj,
    aten.polar.default: lambda length, angle: torch.complex(length * torch.cos(angle), length * torch.sin(angle)),
    aten.vdot.default: lambda x, y: (x * y).sum(),
}
