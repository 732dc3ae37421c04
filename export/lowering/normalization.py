"""Group and layer normalisation.

Both directions of group normalisation come down to an affine map for each channel of each sample, y = a·x + b, and sums
over its pixels. Sums of products over large images are matrix products of a row with a column, so no product is stored.
(Wu and He, Group Normalization, ECCV 2018; the gradient by the chain rule through mean and variance.)
"""

from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Result, RuleBook, Value, elements, size

aten = torch.ops.aten
RULES = RuleBook()

SMALL_IMAGE = 256
"""Pixels below which a sum of products is faster as a product and a sum than as many small matrix products."""


@RULES.rule(aten.native_group_norm.default)
def group_norm(context: Context, _: Call, x: Value, weight: Value | None, bias: Value | None, *rest: Any) -> Result:
    """Results: y like x, mean (B, G), reciprocal deviation (B, G); LayerNormalization gives them in one pass."""
    channels, groups, eps = size(x.shape[1]), rest[-2], rest[-1]
    inside = elements(x.shape[1:]) // groups
    rows = context.add("Reshape", x.name, context.ints(0, groups, inside))
    ones = context.graph.constant([1.0] * inside, "float32")
    normal, mean, deviation = context.graph.add_many(
        "LayerNormalization", rows, ones, outputs=3, axis=-1, epsilon=float(eps)
    )
    result = context.add("Reshape", normal, context.ints(0, channels, -1))
    if weight is not None:
        result = context.add("Mul", result, context.add("Reshape", weight.name, context.ints(channels, 1)))
    if bias is not None:
        result = context.add("Add", result, context.add("Reshape", bias.name, context.ints(channels, 1)))
    flat = context.ints(0, groups)
    return context.reshape(result, x.shape), context.add("Reshape", mean, flat), context.add("Reshape", deviation, flat)


@RULES.rule(aten.native_group_norm_backward.default)
def group_norm_backward(
    context: Context,
    call: Call,
    gradient: Value,
    x: Value,
    mean: Value,
    deviation: Value,
    weight: Value | None,
    *rest: Any,
) -> Result:
    """Gradients of x, weight (C,) and bias (C,)."""
    add, ints = context.add, context.ints
    groups = rest[-2]
    channels, pixels = size(x.shape[1]), elements(x.shape[2:])
    each = channels // groups
    dy = add("Reshape", gradient.name, ints(0, channels, pixels))
    xs = add("Reshape", x.name, ints(0, channels, pixels))
    if pixels < SMALL_IMAGE:
        products = add("ReduceSum", add("Mul", dy, xs), ints(2), keepdims=0)
    else:
        row = add("Reshape", dy, ints(0, channels, 1, pixels))
        products = add("MatMul", row, add("Reshape", xs, ints(0, channels, pixels, 1)))
    by_group = ints(0, groups, each)
    along = add("Reshape", products, by_group)  # Σ dy·x  (B, G, C/G)
    total = add("Reshape", add("ReduceSum", dy, ints(2), keepdims=0), by_group)  # Σ dy    (B, G, C/G)
    mu = add("Reshape", mean.name, ints(0, groups, 1))
    rho = add("Reshape", deviation.name, ints(0, groups, 1))
    gamma = None if weight is None else add("Reshape", weight.name, ints(1, groups, each))

    def scaled(name: str) -> str:
        return name if gamma is None else add("Mul", name, gamma)

    along_group = add("ReduceSum", scaled(along), ints(2), keepdims=1)  # (B, G, 1)
    total_group = add("ReduceSum", scaled(total), ints(2), keepdims=1)
    share = context.graph.constant(1.0 / (each * pixels), "float32")
    cube = add("Mul", add("Mul", rho, rho), add("Mul", rho, share))
    of_x = add("Mul", add("Sub", add("Mul", total_group, mu), along_group), cube)
    fixed = add("Neg", add("Add", add("Mul", of_x, mu), add("Mul", add("Mul", total_group, rho), share)))
    of_dy = scaled(rho)

    def per_channel(name: str) -> str:
        full = name if gamma is not None and name is of_dy else add("Expand", name, ints(1, groups, each))
        return add("Reshape", full, ints(0, channels, 1))

    dx = None
    if 0 in call.used:
        dx = add("Mul", dy, per_channel(of_dy))
        dx = add("Add", dx, add("Mul", xs, per_channel(of_x)))
        dx = context.reshape(add("Add", dx, per_channel(fixed)), x.shape)
    dgamma = add("Mul", add("Sub", along, add("Mul", total, mu)), rho)
    vector = ints(channels)
    return (
        dx,
        add("Reshape", add("ReduceSum", dgamma, ints(0), keepdims=0), vector) if 1 in call.used else None,
        add("Reshape", add("ReduceSum", total, ints(0), keepdims=0), vector) if 2 in call.used else None,
    )


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
    """Results: y like x, mean and reciprocal deviation with the normalised dimensions kept as ones."""
    scale = context.filled(tuple(normal_shape), 1.0, x.dtype) if weight is None else weight.name
    inputs = (x.name, scale) if bias is None else (x.name, scale, bias.name)
    return context.graph.add_many("LayerNormalization", *inputs, outputs=3, axis=-len(normal_shape), epsilon=float(eps))


@RULES.rule(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    context: Context,
    call: Call,
    gradient: Value,
    x: Value,
    normal_shape: Sequence[int],
    mean: Value,
    deviation: Value,
    weight: Value | None,
    *_: Any,
) -> Result:
    """Gradients of x, weight and bias."""
    add = context.add
    inner = context.ints(*range(x.rank - len(normal_shape), x.rank))
    outer = context.ints(*range(x.rank - len(normal_shape)))
    normal = add("Mul", add("Sub", x.name, mean.name), deviation.name)
    dy = gradient.name if weight is None else add("Mul", gradient.name, weight.name)
    level = add("ReduceMean", dy, inner, keepdims=1)
    slope = add("ReduceMean", add("Mul", dy, normal), inner, keepdims=1)
    dx = add("Mul", add("Sub", add("Sub", dy, level), add("Mul", normal, slope)), deviation.name)
    dweight = add("ReduceSum", add("Mul", gradient.name, normal), outer, keepdims=0) if 1 in call.used else None
    dbias = add("ReduceSum", gradient.name, outer, keepdims=0) if 2 in call.used else None
    return dx, dweight, dbias
