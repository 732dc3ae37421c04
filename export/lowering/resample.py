"""Pooling and interpolation, forward and backward.

Nearest-neighbour enlarging by whole factors is Resize, and its gradient an average pool. Linear and bicubic
interpolation of fixed sizes is a matrix product with a constant matrix for each dimension, so its gradient is that with
the transposed ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.lowering.context import Call, Context, Result, RuleBook, Value, each, elements, size

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
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
    """Results: the maxima, and where in their channel they were; ONNX counts through the whole tensor."""
    count = x.rank - 2
    attributes = {
        "kernel_shape": each(kernel, count),
        "strides": each(stride or kernel, count),
        "pads": each(padding, count) * 2,
        "dilations": each(dilation, count),
        "ceil_mode": int(ceil),
    }
    names = context.graph.add_many("MaxPool", x.name, outputs=2 if 1 in call.used else 1, **attributes)
    if 1 not in call.used:
        return names[0], None
    return names[0], context.add("Mod", names[1], context.number(elements(x.shape[2:]), torch.int64))


@RULES.rule(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(context: Context, call: Call, x: Value, output: Sequence[int]) -> Result:
    """Results: the maxima of equal windows, and where in their channel they were."""
    window = [size(length) // target for length, target in zip(x.shape[2:], output, strict=True)]
    return max_pool(context, call, x, window)


@RULES.rule(aten.max_pool2d_with_indices_backward.default, aten.adaptive_max_pool2d_backward.default)
@RULES.rule(aten.max_pool3d_with_indices_backward.default, aten.adaptive_max_pool3d_backward.default)
def max_pool_backward(context: Context, call: Call, gradient: Value, x: Value, *rest: Any) -> Result:
    """Each gradient added where its maximum was."""
    indices, values = (context.reshape_to(name, 0, 0, -1) for name in (rest[-1].name, gradient.name))
    zeros = context.filled((*x.shape[:2], elements(x.shape[2:])), 0.0, call.dtype)
    summed = context.add("ScatterElements", zeros, indices, values, axis=2, reduction="add")
    return context.reshape(summed, call.shape)


@RULES.rule(aten.avg_pool2d.default, aten.avg_pool3d.default)
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
        matrices = pool_matrices(x.shape[2:], kernel, stride, padding, ceil, count_padding, divisor)
        return along(context, matrices, x)
    count = x.rank - 2
    return context.add(
        "AveragePool",
        x.name,
        kernel_shape=each(kernel, count),
        strides=each(stride or kernel, count),
        pads=each(padding, count) * 2,
        ceil_mode=int(ceil),
        count_include_pad=int(count_padding),
    )


@RULES.rule(aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default)
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
    matrices = pool_matrices(x.shape[2:], kernel, stride, padding, ceil, count_padding, divisor)
    return along(context, [matrix.T for matrix in matrices], gradient)


@RULES.rule(aten._adaptive_avg_pool2d.default, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default)
@RULES.rule(aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default)
@RULES.rule(aten._adaptive_avg_pool3d.default, aten.upsample_trilinear3d.default)
@RULES.rule(aten.upsample_nearest3d.default, aten._upsample_nearest_exact3d.default)
def linear_resample(context: Context, call: Call, x: Value, output: Sequence[int], *rest: Any) -> Result:
    """R x Cᵀ for constant matrices R of the rows and C of the columns."""
    return along(context, _matrices(call.operator, x.shape[2:], output, rest), x)


@RULES.rule(aten._adaptive_avg_pool2d_backward.default, aten._adaptive_avg_pool3d_backward.default)
def adaptive_pool_backward(context: Context, call: Call, gradient: Value, x: Value) -> Result:
    """Rᵀ g C."""
    matrices = _matrices(call.operator, x.shape[2:], gradient.shape[2:], ())
    return along(context, [matrix.T for matrix in matrices], gradient)


@RULES.rule(aten.upsample_bilinear2d_backward.default, aten.upsample_bicubic2d_backward.default)
@RULES.rule(aten._upsample_bilinear2d_aa_backward.default, aten._upsample_bicubic2d_aa_backward.default)
@RULES.rule(aten.upsample_trilinear3d_backward.default)
@RULES.rule(aten.upsample_nearest3d_backward.default, aten._upsample_nearest_exact3d_backward.default)
def interpolate_backward(
    context: Context, call: Call, gradient: Value, output: Sequence[int], source: Sequence[Any], *rest: Any
) -> Result:
    """Rᵀ g C."""
    matrices = _matrices(call.operator, source[2:], output, rest)
    return along(context, [matrix.T for matrix in matrices], gradient)


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
        return interpolate_backward(context, call, gradient, output, source, *rest)
    mean = context.add("AveragePool", gradient.name, kernel_shape=factors, strides=factors)
    return context.add("Mul", mean, context.number(float(factors[0] * factors[1]), call.dtype))


def whole_factors(source: Sequence[Any], output: Sequence[int], scales: Sequence[float | None]) -> list[int] | None:
    """Return the factors if every pixel is repeated as often; a scale that was rounded repeats unevenly."""
    rows, columns = size(source[0]), size(source[1])
    factors = [output[0] // rows, output[1] // columns]
    whole = [factors[0] * rows, factors[1] * columns] == list(output)
    even = all(scale is None or scale == factor for scale, factor in zip(scales, factors, strict=False))
    return factors if whole and even else None


def along(context: Context, matrices: Sequence[NDArray[Any]], x: Value) -> str:
    """Multiply each dimension behind the channels by its matrix (target, source): of two, rows · x · columnsᵀ."""
    *depth, rows, columns = matrices
    name = context.add("MatMul", x.name, context.graph.constant(np.ascontiguousarray(columns.T)))
    name = context.add("MatMul", context.graph.constant(np.ascontiguousarray(rows)), name)
    if not depth:
        return name
    (planes,) = depth
    flat = context.reshape_to(name, 0, 0, planes.shape[1], -1)
    flat = context.add("MatMul", context.graph.constant(np.ascontiguousarray(planes)), flat)
    return context.reshape_to(flat, 0, 0, *(matrix.shape[0] for matrix in matrices))


def pool_matrices(
    source: Sequence[Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | int,
    ceil: bool,
    count_padding: bool,
    divisor: int | None,
) -> list[NDArray[Any]]:
    """Return the matrix of each direction: PyTorch's own pooling applied to the identity."""
    count = len(source)
    kernel, stride, padding = each(kernel, count), each(stride or kernel, count), each(padding, count)
    matrices = []
    for i in range(count):
        length = size(source[i])
        identity = torch.eye(length).reshape(length, 1, length, 1)
        # A divisor of the whole window is put into the rows.
        share = None if divisor is None else (divisor if i == 0 else 1)
        means = aten.avg_pool2d.default(
            identity, [kernel[i], 1], [stride[i], 1], [padding[i], 0], ceil, count_padding, share
        )
        matrices.append(np.ascontiguousarray(means.reshape(length, -1).numpy().T))
    return matrices


IN_TWO = {
    "_adaptive_avg_pool3d": "_adaptive_avg_pool2d",
    "upsample_trilinear3d": "upsample_bilinear2d",
    "upsample_nearest3d": "upsample_nearest2d",
    "_upsample_nearest_exact3d": "_upsample_nearest_exact2d",
}
"""What does in two dimensions as an operator does in three."""


def _matrices(operator: str, source: Sequence[Any], output: Sequence[Any], rest: Sequence[Any]) -> list[NDArray[Any]]:
    """Return the matrix of each direction: PyTorch's own operator applied to the identity."""
    name = operator.split(".")[1].removesuffix("_backward")
    forward = getattr(aten, IN_TWO.get(name, name)).default
    count = len(source)
    scales = tuple(v for v in rest if isinstance(v, float | None))[-count:] if len(rest) > 1 else ()
    aligned = tuple(v for v in rest if isinstance(v, bool))
    matrices = []
    for i in range(count):
        length, target = size(source[i]), size(output[i])
        if name.endswith("_aa"):  # its kernel does not keep samples of one column apart
            result = forward(
                torch.eye(length)[None, None], [target, length], *aligned, scales[i] if scales else None, None
            )
            matrices.append(np.ascontiguousarray(result[0, 0].numpy()))
            continue
        identity = torch.eye(length).reshape(length, 1, length, 1)  # one column for each source pixel
        extra = (*aligned, scales[i] if scales else None, None) if scales else aligned
        result = forward(identity, [target, 1], *extra)  # (length, 1, target, 1)
        matrices.append(np.ascontiguousarray(result.reshape(length, target).numpy().T))
    return matrices
