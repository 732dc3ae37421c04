"""Sums, means, extremes, orders, softmax and matrix products."""

from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Result, RuleBook, Untranslatable, Value, axis, elements
from export.onnx_graph import ELEMENT
from export.trace import Batch, Dim

aten = torch.ops.aten
RULES = RuleBook()

REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"}


@RULES.rule(
    aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.amax.default, aten.amin.default
)
@RULES.rule(aten.prod.default)
def reduce(
    context: Context, call: Call, x: Value, dims: Sequence[int] | None = None, keep: bool = False, **_: Any
) -> Result:
    """Reduce over some dimensions, or over all."""
    op = REDUCTIONS[call.operator.split(".")[1]]
    name = x.name if x.dtype == call.dtype else context.add("Cast", x.name, to=ELEMENT[call.dtype])
    axes = [axis(d, x.rank) for d in dims or range(x.rank)]
    if op in ("ReduceSum", "ReduceMean") and axes:
        return context.reduced(op, Value(name, x.shape, call.dtype), axes, keepdims=keep)
    return context.add(op, name, context.ints(*axes), keepdims=int(keep)) if axes else name


@RULES.rule(aten.prod.dim_int)
def product_along(context: Context, call: Call, x: Value, dim: int, keep: bool = False, **_: Any) -> Result:
    """Multiply along a dimension."""
    name = context.operand(x, call.dtype)
    return context.add("ReduceProd", name, context.ints(axis(dim, x.rank)), keepdims=int(keep))


@RULES.rule(aten.any.default, aten.any.dim, aten.any.dims)
def any_of(
    context: Context, call: Call, x: Value, dims: Sequence[int] | int | None = None, keep: bool = False
) -> Result:
    """Tell whether some element is not zero."""
    chosen = [dims] if isinstance(dims, int) else dims or range(x.rank)
    truth = context.operand(x, torch.bool)
    axes = [axis(d, x.rank) for d in chosen]
    if not axes:
        return truth
    largest = context.add(
        "ReduceMax", context.add("Cast", truth, to=ELEMENT[torch.int32]), context.ints(*axes), keepdims=int(keep)
    )
    return context.add("Cast", largest, to=ELEMENT[torch.bool])


@RULES.rule(aten.sort.default, aten.sort.stable)
def order(
    context: Context, call: Call, x: Value, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> Result:
    """Results: the elements in order along a dimension, and their places."""
    return top(context, call, x, x.shape[axis(dim, x.rank)], dim, descending)


@RULES.rule(aten.topk.default)
def top(
    context: Context, call: Call, x: Value, k: Dim, dim: int = -1, largest: bool = True, ordered: bool = True
) -> Result:
    """Results: the k largest or smallest elements along a dimension, in order, and their places."""
    count = context.dims((k,))
    name = context.operand(x, torch.int32) if x.dtype == torch.bool else x.name
    values, places = context.graph.add_many(
        "TopK", name, count, outputs=2, axis=axis(dim, x.rank), largest=int(largest)
    )
    return context.add("Cast", values, to=ELEMENT[torch.bool]) if x.dtype == torch.bool else values, places


@RULES.rule(aten.max.default, aten.min.default)
def extreme(context: Context, call: Call, x: Value) -> Result:
    """Take the largest or the smallest of all elements."""
    return context.add("ReduceMax" if "max" in call.operator else "ReduceMin", x.name, keepdims=0)


@RULES.rule(aten.max.dim, aten.min.dim)
def extreme_along(context: Context, call: Call, x: Value, dim: int, keep: bool = False) -> Result:
    """Results: the largest or smallest along a dimension, and where the first of them is."""
    largest, dim = "max" in call.operator, axis(dim, x.rank)
    name = context.operand(x, torch.int32) if x.dtype == torch.bool else x.name
    value = context.add("ReduceMax" if largest else "ReduceMin", name, context.ints(dim), keepdims=int(keep))
    place = context.add("ArgMax" if largest else "ArgMin", name, axis=dim, keepdims=int(keep))
    if x.dtype == torch.bool:
        value = context.add("Cast", value, to=ELEMENT[torch.bool])
    return value, place if 1 in call.used else None


@RULES.rule(aten.argmax.default, aten.argmin.default)
def place_of_extreme(context: Context, call: Call, x: Value, dim: int | None = None, keep: bool = False) -> Result:
    """Find the place of the first of the largest or smallest elements along a dimension."""
    op = "ArgMax" if "max" in call.operator else "ArgMin"
    if dim is None:
        if any(isinstance(d, Batch) for d in x.shape):
            raise Untranslatable("it looks for one place in the whole batch: say along which dimension")
        return context.add(op, context.reshape_to(x.name, -1), axis=0, keepdims=0)
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
    level = add("ReduceMean", x.name, axes, keepdims=1)
    centred = add("Sub", x.name, level)
    total = add("ReduceSum", add("Mul", centred, centred), axes, keepdims=int(keepdim))
    freedom = _freedom(context, x, inner, 1 if correction is None else correction)
    spread = add("Div", total, freedom)
    if "std" in call.operator:
        spread = add("Sqrt", spread)
    if "mean" not in call.operator:
        return spread
    return spread, level if keepdim else add("Squeeze", level, axes)


def _freedom(context: Context, x: Value, dims: Sequence[int], correction: float) -> str:
    """Return the number of elements over some dimensions less a correction, not below zero."""
    lengths = [x.shape[d] for d in dims]
    batched = next((dim for dim in lengths if isinstance(dim, Batch)), None)
    if batched is None:
        return context.number(float(max(elements(lengths) - correction, 0)), x.dtype)
    lengths.remove(batched)
    number = context.number(Batch(batched.factor * elements(lengths)), x.dtype)
    less = context.add("Sub", number, context.number(float(correction), x.dtype))
    return context.add("Max", less, context.number(0.0, x.dtype))


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
