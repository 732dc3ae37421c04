"""Batch normalisation, by the statistics of the batch or by given ones.

Every pass over the data is one operator: sums over samples and pixels, and affine maps for each channel. Of images
those are depthwise 1×1 convolutions, one pass on all threads, with which the engine fuses the activation that follows;
of other data BatchNormalization, which runs on one thread. The data are centred before they are squared, so a mean that
is large against the deviation costs no accuracy, and both directions share the centred data.
(Ioffe and Szegedy, Batch Normalization, ICML 2015; the gradient by the chain rule through mean and variance.)
"""

import math
from typing import Any

import torch

from export.lowering.context import Call, Context, Result, RuleBook, Untranslatable, Value, size
from export.trace import Batch

aten = torch.ops.aten
RULES = RuleBook()

SMALL_IMAGE = 256
"""Pixels below which a sum of products is faster as a product and a sum than as many small matrix products."""


@RULES.rule(aten.native_batch_norm.default)
def batch_norm(
    context: Context,
    _: Call,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    __: float,
    eps: float,
) -> Result:
    """Results: y like x, mean (C,) and reciprocal deviation (C,) of the batch."""
    add = context.add
    channels = size(x.shape[1])
    gamma = _constant(context, 1.0, channels) if weight is None else weight.name
    beta = _constant(context, 0.0, channels) if bias is None else bias.name
    if not training:
        assert mean is not None
        assert variance is not None
        return add("BatchNormalization", x.name, gamma, beta, mean.name, variance.name, epsilon=float(eps)), None, None
    if mean is not None:
        raise Untranslatable("it changes a buffer: use a BatchNorm module, whose running statistics are kept")
    level = _mean(context, x)
    centred = _centred(context, x, level)
    spread = _mean_product(context, x, centred, centred)
    deviation = add("Reciprocal", add("Sqrt", add("Add", spread, context.number(eps, x.dtype))))
    y = _affine(context, x, centred, deviation if weight is None else add("Mul", deviation, gamma), beta)
    return y, add("Reshape", level, context.ints(channels)), deviation


@RULES.rule(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    context: Context,
    call: Call,
    gradient: Value,
    x: Value,
    weight: Value | None,
    mean: Value | None,
    variance: Value | None,
    saved_mean: Value | None,
    saved_deviation: Value | None,
    training: bool,
    eps: float,
    mask: Any,
) -> Result:
    """Gradients of x, weight (C,) and bias (C,).

    With c the centred data, r the reciprocal deviation and w the weight: dx = r·w·(dy − mean dy − c·r² · mean dy·c).
    """
    add = context.add
    channels = size(x.shape[1])
    column = context.ints(channels, *[1] * (x.rank - 2))
    wanted = [mask[i] and i in call.used for i in range(3)]
    if training:
        assert saved_deviation is not None
        level, deviation = _mean(context, x), saved_deviation.name
    else:
        assert mean is not None
        assert variance is not None
        level = add("Reshape", mean.name, column)
        deviation = add("Reciprocal", add("Sqrt", add("Add", variance.name, context.number(eps, x.dtype))))
    centred = _centred(context, x, level)
    scale = deviation if weight is None else add("Mul", deviation, weight.name)
    dy_mean = add("Reshape", _mean(context, gradient), context.ints(channels))
    dx = along = None
    if (training and wanted[0]) or wanted[1]:
        along = _mean_product(context, x, gradient.name, centred)
    if wanted[0]:
        dx = add("Mul", gradient.name, add("Reshape", scale, column))
        if training:
            assert along is not None
            slope = add("Neg", add("Mul", add("Mul", add("Mul", deviation, deviation), along), scale))
            fixed = add("Neg", add("Mul", dy_mean, scale))
            dx = add("Add", dx, _affine(context, x, centred, slope, fixed))
    count = _count(context, x)
    return (
        dx,
        add("Mul", add("Mul", along, deviation), count) if wanted[1] and along is not None else None,
        add("Mul", dy_mean, count) if wanted[2] else None,
    )


def _affine(context: Context, x: Value, data: str, scale: str, shift: str) -> str:
    """scale · data + shift by channel; `data` is like x, scale and shift are (C,)."""
    channels = size(x.shape[1])
    if x.rank != 4:
        zeros, ones = _constant(context, 0.0, channels), _constant(context, 1.0, channels)
        return context.add("BatchNormalization", data, scale, shift, zeros, ones, epsilon=0.0)
    kernel = context.add("Reshape", scale, context.ints(channels, 1, 1, 1))
    return context.add("Conv", data, kernel, shift, group=channels, kernel_shape=[1, 1])


def _constant(context: Context, value: float, channels: int) -> str:
    return context.graph.constant([value] * channels, "float32")


def _mean(context: Context, x: Value) -> str:
    """Return the mean over samples and pixels, (C, 1, …): these dimensions stay as 1, but for the first."""
    axes = context.ints(0, *range(2, x.rank))
    column = context.ints(size(x.shape[1]), *[1] * (x.rank - 2))
    return context.add("Reshape", context.add("ReduceMean", x.name, axes, keepdims=0), column)


def _centred(context: Context, x: Value, level: str) -> str:
    return context.add("Sub", x.name, level)


def _mean_product(context: Context, x: Value, first: str, second: str) -> str:
    """Return the mean over samples and pixels of a product of two tensors like x: (C,)."""
    add, ints = context.add, context.ints
    pixels = math.prod(size(d) for d in x.shape[2:])
    if pixels < SMALL_IMAGE:
        axes = ints(0, *range(2, x.rank))
        return add("ReduceMean", add("Mul", first, second), axes, keepdims=0)
    channels = size(x.shape[1])
    row = add("Reshape", first, ints(0, channels, 1, pixels))
    # Written with a Transpose, which the engine fuses, this runs five times faster than from a reshaped column.
    column = add("Transpose", add("Reshape", second, ints(0, channels, 1, pixels)), perm=[0, 1, 3, 2])
    sums = add("Reshape", add("MatMul", row, column), ints(0, channels))
    return add("Mul", add("ReduceMean", sums, ints(0), keepdims=0), context.number(1.0 / pixels, x.dtype))


def _count(context: Context, x: Value) -> str:
    """Return the number of values of a channel."""
    pixels = math.prod(size(d) for d in x.shape[2:])
    samples = x.shape[0]
    number = Batch(samples.factor * pixels) if isinstance(samples, Batch) else samples * pixels
    return context.number(number, x.dtype)
