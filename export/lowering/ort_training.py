"""Other translations of some operators, into what onnxruntime-training 1.19.2 can differentiate on a CPU.

The forward pass alone is translated for it; its own gradient builder differentiates. What these rules write is equal in
value to what the ordinary ones write, but each ONNX operator in it has a gradient there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from export.lowering import resample
from export.lowering.context import Call, Context, Result, RuleBook, Untranslatable, Value, elements, size
from export.lowering.resample import along, linear_resample, pool_matrices, whole_factors

aten = torch.ops.aten
RULES = RuleBook()

NO_STEP: frozenset[str] = frozenset(
    {
        *("And", "Or", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"),
        *("Shape", "Size", "OneHot", "ConstantOfShape", "Range", "MaxPool"),
    }
)
"""Operators through which no gradient flows: their results are truth values, places, counts or constants."""

DIFFERENTIABLE: frozenset[str] = frozenset(
    {
        *("Abs", "Add", "Clip", "Cos", "Div", "Erf", "Exp", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg"),
        *("Pow", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh", "Where", "Cast"),
        *("Concat", "Expand", "Pad", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("Gather", "GatherElements"),
        *("LogSoftmax", "ReduceMean", "ReduceSum", "Softmax", "Gemm", "MatMul"),
        *("Conv", "GlobalAveragePool", "LayerNormalization"),
    }
)
"""Operators whose gradient 1.19.2 has, with a kernel for the CPU: tests hold each to finite differences."""


@RULES.rule(aten.upsample_nearest2d.default)
def nearest(context: Context, call: Call, x: Value, output: Sequence[int], *rest: Any) -> Result:
    """Each pixel repeated by Expand, whose gradient is a sum, where Resize has none."""
    factors = whole_factors(x.shape[-2:], output, rest)
    if factors is None:
        return linear_resample(context, call, x, output, *rest)
    batch, channels, height, width = x.shape
    name = context.reshape(x.name, (batch, channels, height, 1, width, 1))
    name = context.add("Expand", name, context.ints(1, 1, 1, factors[0], 1, factors[1]))
    return context.reshape(name, call.shape)


@RULES.rule(aten.native_group_norm.default)
def group_norm(context: Context, call: Call, x: Value, weight: Value | None, bias: Value | None, *rest: Any) -> Result:
    """Write LayerNormalization over the groups, with the bias and all three results, which its gradient reads."""
    channels, groups = size(x.shape[1]), rest[-2]
    length = elements(x.shape[1:]) // groups
    rows = context.add("Reshape", x.name, context.ints(0, groups, length))
    names = _normalised(context, rows, None, None, (length,), x, rest[-1])
    result = context.add("Reshape", names[0], context.ints(0, channels, -1))
    if weight is not None:
        result = context.add("Mul", result, context.add("Reshape", weight.name, context.ints(channels, 1)))
    if bias is not None:
        result = context.add("Add", result, context.add("Reshape", bias.name, context.ints(channels, 1)))
    return context.reshape(result, x.shape), names[1], names[2]


@RULES.rule(aten.native_layer_norm.default)
def layer_norm(
    context: Context,
    _: Call,
    x: Value,
    normal_shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> Result:
    """Write LayerNormalization with the bias and all three results, which its gradient reads."""
    return _normalised(context, x.name, weight, bias, normal_shape, x, eps)


def _normalised(
    context: Context,
    name: str,
    weight: Value | None,
    bias: Value | None,
    shape: Sequence[int],
    x: Value,
    eps: float,
) -> tuple[str, ...]:
    # Scale and shift are each this node's own: 1.19.2 gives a gradient to both, and two of one name are an error. They
    # are made when the graph runs: stored, they would outweigh the model (as in export.lowering.normalization).
    scale = _filled(context, name, 1.0, shape, x) if weight is None else weight.name
    shift = _filled(context, name, 0.0, shape, x) if bias is None else bias.name
    return context.graph.add_many(
        "LayerNormalization", name, scale, shift, outputs=3, axis=-len(shape), epsilon=float(eps)
    )


def _filled(context: Context, name: str, value: float, shape: Sequence[int], x: Value) -> str:
    """Fill a tensor with one value; its length is counted from the data, or equal ones would be merged."""
    first = context.add("Reshape", context.add("Size", name), context.ints(1))
    others = context.add(
        "Mul", context.add("Shape", name, start=0, end=1), context.ints(elements(x.shape[1:]) // shape[0])
    )
    length = context.add("Div", first, others)
    if len(shape) > 1:
        length = context.add("Concat", length, context.ints(*shape[1:]), axis=0)
    return context.graph.add_many("Expand", context.number(value, x.dtype), length, outputs=1)[0]


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
    """Compute y like x by sums; from the batch's statistics, also mean (C,) and reciprocal deviation (C,)."""
    add = context.add
    channels = size(x.shape[1])
    column = context.ints(channels, *[1] * (x.rank - 2))
    axes = context.ints(0, *range(2, x.rank))
    if training:
        if mean is not None:
            raise Untranslatable("it changes a buffer: use a BatchNorm module, whose running statistics are kept")
        level = add("ReduceMean", x.name, axes, keepdims=0)
        centred = add("Sub", x.name, add("Reshape", level, column))
        spread = add("ReduceMean", add("Mul", centred, centred), axes, keepdims=0)
    else:
        assert mean is not None
        assert variance is not None
        level, spread = mean.name, variance.name
        centred = add("Sub", x.name, add("Reshape", level, column))
    deviation = add("Sqrt", add("Add", spread, context.number(eps, x.dtype)))
    one = context.number(1.0, x.dtype)
    reciprocal = add("Div", one, deviation)
    scale = reciprocal if weight is None else add("Mul", reciprocal, weight.name)
    y = add("Mul", centred, add("Reshape", scale, column))
    if bias is not None:
        y = add("Add", y, add("Reshape", bias.name, column))
    return (y, level, reciprocal) if training else (y, None, None)


@RULES.rule(aten.max_pool2d_with_indices.default)
def max_pool(context: Context, call: Call, x: Value, *rest: Any) -> Result:
    """Look the maxima up where MaxPool found them: its own gradient needs the batch size beforehand."""
    pooled = dataclasses.replace(call, used=frozenset({0, 1}))
    places = resample.max_pool(context, pooled, x, *rest)[1]
    assert places is not None
    flat = context.reshape_to(x.name, 0, 0, -1)
    found = context.add("GatherElements", flat, context.reshape_to(places, 0, 0, -1), axis=2)
    return context.reshape(found, call.shape), places


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
    """Write two matrix products: the gradient of AveragePool needs the batch size beforehand."""
    return along(context, pool_matrices(x.shape[2:], kernel, stride, padding, ceil, count_padding, divisor), x)


@RULES.rule(aten.reciprocal.default)
def reciprocal(context: Context, call: Call, x: Value) -> Result:
    """Write 1 / x as a division."""
    return context.add("Div", context.number(1.0, call.dtype), context.operand(x, call.dtype))


@RULES.rule(aten.rsqrt.default)
def reciprocal_root(context: Context, call: Call, x: Value) -> Result:
    """Write 1 / √x as a division."""
    return context.add("Div", context.number(1.0, call.dtype), context.add("Sqrt", context.operand(x, call.dtype)))


@RULES.rule(aten.hardsigmoid.default)
def hardsigmoid(context: Context, call: Call, x: Value) -> Result:
    """Write x/6 + 1/2 between 0 and 1 as a clip."""
    line = context.add("Mul", x.name, context.number(1 / 6, call.dtype))
    line = context.add("Add", line, context.number(0.5, call.dtype))
    return context.add("Clip", line, context.number(0.0, call.dtype), context.number(1.0, call.dtype))


@RULES.rule(aten.hardswish.default)
def hardswish(context: Context, call: Call, x: Value) -> Result:
    """Write x · hardsigmoid(x)."""
    return context.add("Mul", x.name, str(hardsigmoid(context, call, x)))
