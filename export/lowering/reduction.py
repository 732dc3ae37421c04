"""Sums, means, softmax and matrix products."""

from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Result, RuleBook, Untranslatable, Value, axis, elements
from export.onnx_graph import ELEMENT

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(
    aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.amax.default, aten.amin.default
)
def reduce(
    context: Context, call: Call, x: Value, dims: Sequence[int] | None = None, keep: bool = False, **_: Any
) -> Result:
    """Reduce over some dimensions, or over all."""
    op = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}[
        call.operator.split(".")[1]
    ]
    name = x.name if x.dtype == call.dtype else context.add("Cast", x.name, to=ELEMENT[call.dtype])
    axes = [axis(d, x.rank) for d in dims or range(x.rank)]
    if op in ("ReduceSum", "ReduceMean") and axes:
        return context.reduced(op, Value(name, x.shape, call.dtype), axes, keepdims=keep)
    return context.add(op, name, context.ints(*axes), keepdims=int(keep))


@RULES.rule(aten.max.default, aten.min.default)
def extreme(context: Context, call: Call, x: Value) -> Result:
    """Take the largest or the smallest of all elements."""
    return context.add("ReduceMax" if "max" in call.operator else "ReduceMin", x.name, keepdims=0)


@RULES.rule(aten.max.dim, aten.min.dim)
def extreme_along(context: Context, call: Call, x: Value, dim: int, keep: bool = False) -> Result:
    """Results: the largest or smallest along a dimension, and where the first of them is."""
    largest, dim = "max" in call.operator, axis(dim, x.rank)
    value = context.add("ReduceMax" if largest else "ReduceMin", x.name, context.ints(dim), keepdims=int(keep))
    place = context.add("ArgMax" if largest else "ArgMin", x.name, axis=dim, keepdims=int(keep))
    return value, place if 1 in call.used else None


@RULES.rule(aten.argmax.default, aten.argmin.default)
def place_of_extreme(context: Context, call: Call, x: Value, dim: int | None = None, keep: bool = False) -> Result:
    """Find the place of the first of the largest or smallest elements along a dimension."""
    if dim is None:
        raise Untranslatable("it looks for one place in the whole batch: say along which dimension")
    op = "ArgMax" if "max" in call.operator else "ArgMin"
    return context.add(op, x.name, axis=axis(dim, x.rank), keepdims=int(keep))


@RULES.rule(aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction)
def variance(
    context: Context,
    call: Call,
    x: Value,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Result:
    """Compute the mean square of the centred elements, its root, or either with the mean."""
    add = context.add
    inner = sorted(axis(d, x.rank) for d in dims or range(x.rank))
    axes = context.ints(*inner)
    count = elements([x.shape[d] for d in inner])
    level = add("ReduceMean", x.name, axes, keepdims=1)
    centred = add("Sub", x.name, level)
    total = add("ReduceSum", add("Mul", centred, centred), axes, keepdims=int(keepdim))
    freedom = max(count - (1 if correction is None else correction), 0)
    spread = add("Div", total, context.number(float(freedom), x.dtype))
    if "std" in call.operator:
        spread = add("Sqrt", spread)
    if "mean" not in call.operator:
        return spread
    return spread, level if keepdim else add("Squeeze", level, axes)


@RULES.rule(aten.cumsum.default)
def running_sum(context: Context, call: Call, x: Value, dim: int, **_: Any) -> Result:
    """Sum all elements up to each."""
    name = context.operand(x, call.dtype)
    return context.add("CumSum", name, context.graph.constant(axis(dim, x.rank), "int64"))


@RULES.rule(aten._log_softmax.default, aten._softmax.default)
def softmax(context: Context, call: Call, x: Value, dim: int, _: bool) -> Result:
    """Softmax or its logarithm."""
    return context.add("LogSoftmax" if "log" in call.operator else "Softmax", x.name, axis=axis(dim, x.rank))


@RULES.rule(aten._safe_softmax.default)
def safe_softmax(context: Context, _: Call, x: Value, dim: int, *__: Any) -> Result:
    """Softmax that is zero where everything is masked out with minus infinity: there all of a row is not a number."""
    dim = axis(dim, x.rank)
    result = context.add("Softmax", x.name, axis=dim)
    masked = context.add("IsNaN", context.add("Slice", result, *map(context.ints, (0, 1, dim))))
    return context.add("Where", masked, context.number(0.0, x.dtype), result)


@RULES.rule(aten._log_softmax_backward_data.default)
def log_softmax_backward(context: Context, _: Call, gradient: Value, result: Value, dim: int, __: Any) -> Result:
    """g − exp(y) · Σ g."""
    total = context.add("ReduceSum", gradient.name, context.ints(axis(dim, gradient.rank)), keepdims=1)
    return context.add("Sub", gradient.name, context.add("Mul", context.add("Exp", result.name), total))


@RULES.rule(aten._softmax_backward_data.default)
def softmax_backward(context: Context, _: Call, gradient: Value, result: Value, dim: int, __: Any) -> Result:
    """y · (g − Σ g·y)."""
    weighted = context.add("Mul", gradient.name, result.name)
    total = context.add("ReduceSum", weighted, context.ints(axis(dim, gradient.rank)), keepdims=1)
    return context.add("Mul", result.name, context.add("Sub", gradient.name, total))


@RULES.rule(aten.mm.default, aten.bmm.default)
def product(context: Context, _: Call, x: Value, y: Value) -> Result:
    """Multiply matrices, or a pair for each batch."""
    return context.add("MatMul", x.name, y.name)


@RULES.rule(aten.addmm.default)
def affine(context: Context, _: Call, bias: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Result:
    """beta · bias + alpha · x · y."""
    return context.add("Gemm", x.name, y.name, bias.name, alpha=float(alpha), beta=float(beta))
