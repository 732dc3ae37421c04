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
    ones = _ones(context, x, groups)
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


def _ones(context: Context, x: Value, groups: int) -> str:
    """Make LayerNormalization's scale when the graph runs: stored, it would outweigh the model.

    Its length is counted from the whole tensor, because a length that is known beforehand is folded into a constant.
    """
    rows = context.add("Mul", context.add("Shape", x.name, start=0, end=1), context.ints(groups))
    length = context.add("Div", context.add("Reshape", context.add("Size", x.name), context.ints(1)), rows)
    return context.add("Expand", context.number(1.0, x.dtype), length)


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
    """Gradients of x, weight (C,) and bias (C,): everything by (B, G, C/G, pixels), so that all sums broadcast."""
    add, ints = context.add, context.ints
    groups = rest[-2]
    channels, pixels = size(x.shape[1]), elements(x.shape[2:])
    each = channels // groups
    dy = add("Reshape", gradient.name, ints(0, groups, each, pixels))
    xs = add("Reshape", x.name, ints(0, groups, each, pixels))
    mu = add("Reshape", mean.name, ints(0, groups, 1, 1))
    rho = add("Reshape", deviation.name, ints(0, groups, 1, 1))
    gamma = None if weight is None else add("Reshape", weight.name, ints(1, groups, each, 1))

    def scaled(name: str) -> str:
        return name if gamma is None else add("Mul", name, gamma)

    along = _products(context, dy, xs, channels, pixels, (groups, each))  # Σ dy·x  (B, G, C/G, 1)
    total = add("ReduceSum", dy, ints(3), keepdims=1)  # Σ dy    (B, G, C/G, 1)
    dx = None
    if 0 in call.used:
        # With mean m, reciprocal deviation r and weight w, over a group of D elements:
        # dx = r·w·dy + a·x − (a·m + b),  b = r/D · Σ w·dy,  a = r³/D · (m · Σ w·dy − Σ w·dy·x)
        along_group = add("ReduceSum", scaled(along), ints(2), keepdims=1)  # (B, G, 1, 1)
        total_group = add("ReduceSum", scaled(total), ints(2), keepdims=1)
        share = add("Mul", rho, context.graph.constant(1.0 / (each * pixels), "float32"))
        cube = add("Mul", add("Mul", rho, rho), share)
        of_x = add("Mul", add("Sub", add("Mul", total_group, mu), along_group), cube)
        fixed = add("Add", add("Mul", of_x, mu), add("Mul", total_group, share))
        moved = add("Sub", add("Mul", xs, of_x), fixed)
        dx = context.reshape(add("Add", add("Mul", dy, scaled(rho)), moved), x.shape)
    dgamma = add("Mul", add("Sub", along, add("Mul", total, mu)), rho)
    vector = ints(channels)
    return (
        dx,
        add("Reshape", add("ReduceSum", dgamma, ints(0), keepdims=0), vector) if 1 in call.used else None,
        add("Reshape", add("ReduceSum", total, ints(0), keepdims=0), vector) if 2 in call.used else None,
    )


def _products(context: Context, dy: str, xs: str, channels: int, pixels: int, by_group: tuple[int, int]) -> str:
    """Σ over pixels of dy · x, (B, G, C/G, 1)."""
    add, ints = context.add, context.ints
    if pixels < SMALL_IMAGE:
        return add("ReduceSum", add("Mul", dy, xs), ints(3), keepdims=1)
    row = add("Reshape", dy, ints(0, channels, 1, pixels))
    # Written with a Transpose, which the engine fuses, this runs five times faster than from a reshaped column.
    column = add("Transpose", add("Reshape", xs, ints(0, channels, 1, pixels)), perm=[0, 1, 3, 2])
    return add("Reshape", add("MatMul", row, column), ints(0, *by_group, 1))


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

    def over_samples(name: str) -> str:
        return add("ReduceSum", name, outer, keepdims=0) if x.rank > len(normal_shape) else name

    dweight = over_samples(add("Mul", gradient.name, normal)) if 1 in call.used else None
    dbias = over_samples(gradient.name) if 2 in call.used else None
    return dx, dweight, dbias
