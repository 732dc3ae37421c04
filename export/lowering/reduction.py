"""Sums, means, softmax and matrix products."""

from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Result, RuleBook, Value, axis
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
    if not dims:
        return context.add(op, name, keepdims=int(keep))
    return context.add(op, name, context.ints(*(axis(d, x.rank) for d in dims)), keepdims=int(keep))


@RULES.rule(aten._log_softmax.default, aten._softmax.default)
def softmax(context: Context, call: Call, x: Value, dim: int, _: bool) -> Result:
    """Softmax or its logarithm."""
    return context.add("LogSoftmax" if "log" in call.operator else "Softmax", x.name, axis=axis(dim, x.rank))


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
    """A matrix product, or one for each batch."""
    return context.add("MatMul", x.name, y.name)


@RULES.rule(aten.addmm.default)
def affine(context: Context, _: Call, bias: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Result:
    """beta · bias + alpha · x · y."""
    return context.add("Gemm", x.name, y.name, bias.name, alpha=float(alpha), beta=float(beta))
