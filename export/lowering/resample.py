"""Pooling and interpolation, forward and backward.

Nearest-neighbour enlarging by whole factors is Resize, and its gradient an average pool. Bilinear and bicubic
interpolation of fixed sizes are two matrix products with constant matrices, so their gradients are the transposed ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.lowering.context import Call, Context, Result, RuleBook, Untranslatable, Value, pair, size

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(aten.max_pool2d_with_indices.default)
def max_pool(
    context: Context,
    call: Call,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    ceil: bool = False,
) -> Result:
    """Results: the maxima, and where in the whole tensor they were."""
    attributes = {
        "kernel_shape": pair(kernel),
        "strides": pair(stride or kernel),
        "pads": pair(padding) * 2,
        "dilations": pair(dilation),
        "ceil_mode": int(ceil),
    }
    names = context.graph.add_many("MaxPool", x.name, outputs=2 if 1 in call.used else 1, **attributes)
    return names if 1 in call.used else (names[0], None)


@RULES.rule(aten.adaptive_max_pool2d.default)
def adaptive_max_pool(context: Context, call: Call, x: Value, output: Sequence[int]) -> Result:
    """Results: the maxima of equal windows, and where in the whole tensor they were."""
    lengths = [size(x.shape[-2 + i]) for i in range(2)]
    if any(length % target for length, target in zip(lengths, output, strict=True)):
        raise Untranslatable(f"windows of {lengths} for {list(output)} are not all as large: choose a divisor")
    window = [length // target for length, target in zip(lengths, output, strict=True)]
    return max_pool(context, call, x, window)


@RULES.rule(aten.max_pool2d_with_indices_backward.default, aten.adaptive_max_pool2d_backward.default)
def max_pool_backward(context: Context, call: Call, gradient: Value, x: Value, *rest: Any) -> Result:
    """Each gradient added where its maximum was."""
    indices = context.add("Reshape", rest[-1].name, context.ints(-1))
    values = context.add("Reshape", gradient.name, context.ints(-1))
    length = context.add("Reshape", context.add("Size", x.name), context.ints(1))
    zeros = context.add("Expand", context.number(0.0, call.dtype), length)
    summed = context.add("ScatterElements", zeros, indices, values, axis=0, reduction="add")
    return context.reshape(summed, call.shape)


@RULES.rule(aten.avg_pool2d.default)
def average_pool(
    context: Context,
    _: Call,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Result:
    """Take the mean over windows."""
    if ceil or divisor is not None:  # onnxruntime divides the windows at the edge otherwise
        rows, columns = pool_matrices(x.shape[-2:], kernel, stride, padding, ceil, count_padding, divisor)
        return between(context, rows, x, columns.T)
    return context.add(
        "AveragePool",
        x.name,
        kernel_shape=pair(kernel),
        strides=pair(stride or kernel),
        pads=pair(padding) * 2,
        ceil_mode=int(ceil),
        count_include_pad=int(count_padding),
    )


@RULES.rule(aten.avg_pool2d_backward.default)
def average_pool_backward(
    context: Context,
    _: Call,
    gradient: Value,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | int,
    ceil: bool,
    count_padding: bool,
    divisor: int | None,
) -> Result:
    """Rᵀ g C: a mean over windows is a matrix for each direction."""
    return _transposed(
        context, pool_matrices(x.shape[-2:], kernel, stride, padding, ceil, count_padding, divisor), gradient
    )


@RULES.rule(aten._adaptive_avg_pool2d.default, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default)
def linear_resample(context: Context, call: Call, x: Value, output: Sequence[int], *rest: Any) -> Result:
    """R x Cᵀ for constant matrices R of the rows and C of the columns."""
    rows, columns = _matrices(call.operator, x.shape[-2:], output, rest)
    return between(context, rows, x, columns.T)


@RULES.rule(aten._adaptive_avg_pool2d_backward.default)
def adaptive_pool_backward(context: Context, call: Call, gradient: Value, x: Value) -> Result:
    """Rᵀ g C."""
    return _transposed(context, _matrices(call.operator, x.shape[-2:], gradient.shape[-2:], ()), gradient)


@RULES.rule(aten.upsample_bilinear2d_backward.default, aten.upsample_bicubic2d_backward.default)
def interpolate_backward(
    context: Context, call: Call, gradient: Value, output: Sequence[int], source: Sequence[Any], *rest: Any
) -> Result:
    """Rᵀ g C."""
    return _transposed(context, _matrices(call.operator, source[-2:], output, rest), gradient)


@RULES.rule(aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.default)
def nearest(context: Context, call: Call, x: Value, output: Sequence[int], *rest: Any) -> Result:
    """Each pixel repeated, or for other factors the nearest one."""
    factors = whole_factors(x.shape[-2:], output, rest)
    if factors is None:
        return linear_resample(context, call, x, output, *rest)
    scales = context.graph.constant([1.0, 1.0, *map(float, factors)], "float32")
    return context.add(
        "Resize", x.name, "", scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    )


@RULES.rule(aten.upsample_nearest2d_backward.default, aten._upsample_nearest_exact2d_backward.default)
def nearest_backward(
    context: Context, call: Call, gradient: Value, output: Sequence[int], source: Sequence[Any], *rest: Any
) -> Result:
    """Sum over each pixel's copies."""
    factors = whole_factors(source[-2:], output, rest)
    if factors is None:
        return _transposed(context, _matrices(call.operator, source[-2:], output, rest), gradient)
    mean = context.add("AveragePool", gradient.name, kernel_shape=factors, strides=factors)
    return context.add("Mul", mean, context.number(float(factors[0] * factors[1]), call.dtype))


def whole_factors(source: Sequence[Any], output: Sequence[int], scales: Sequence[float | None]) -> list[int] | None:
    """Return the factors if every pixel is repeated as often; a scale that was rounded repeats unevenly."""
    rows, columns = size(source[0]), size(source[1])
    factors = [output[0] // rows, output[1] // columns]
    whole = [factors[0] * rows, factors[1] * columns] == list(output)
    even = all(scale is None or scale == factor for scale, factor in zip(scales, factors, strict=False))
    return factors if whole and even else None


def between(context: Context, rows: NDArray[Any], x: Value, columns: NDArray[Any]) -> str:
    """Rows · x · columns."""
    wide = context.add("MatMul", x.name, context.graph.constant(columns))
    return context.add("MatMul", context.graph.constant(rows), wide)


def _transposed(context: Context, matrices: tuple[NDArray[Any], NDArray[Any]], gradient: Value) -> str:
    rows, columns = matrices
    return between(context, rows.T, gradient, columns)


def pool_matrices(
    source: Sequence[Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | int,
    ceil: bool,
    count_padding: bool,
    divisor: int | None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the matrix of each direction: PyTorch's own pooling applied to the identity."""
    kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
    matrices = []
    for i in range(2):
        length = size(source[i])
        identity = torch.eye(length).reshape(length, 1, length, 1)
        # A divisor of the whole window is put into the rows.
        share = None if divisor is None else (divisor if i == 0 else 1)
        means = aten.avg_pool2d.default(
            identity, [kernel[i], 1], [stride[i], 1], [padding[i], 0], ceil, count_padding, share
        )
        matrices.append(np.ascontiguousarray(means.reshape(length, -1).numpy().T))
    return matrices[0], matrices[1]


def _matrices(
    operator: str, source: Sequence[Any], output: Sequence[Any], rest: Sequence[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the matrix of each direction: PyTorch's own operator applied to the identity."""
    forward = getattr(aten, operator.split(".")[1].removesuffix("_backward")).default
    scales = tuple(v for v in rest if isinstance(v, float | None))[-2:] if len(rest) > 1 else ()
    aligned = tuple(v for v in rest if isinstance(v, bool))
    matrices = []
    for i in range(2):
        length, target = size(source[i]), size(output[i])
        identity = torch.eye(length).reshape(length, 1, length, 1)  # one column for each source pixel
        extra = (*aligned, scales[i], None) if scales else aligned
        result = forward(identity, [target, 1], *extra)  # (length, 1, target, 1)
        matrices.append(np.ascontiguousarray(result.reshape(length, target).numpy().T))
    return matrices[0], matrices[1]
