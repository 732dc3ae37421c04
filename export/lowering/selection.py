"""Operators that pick elements: slices, and the losses that look a class up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Number, Result, RuleBook, Untranslatable, Value, axis, size
from export.onnx_graph import ELEMENT
from export.trace import Dim

aten = torch.ops.aten
RULES = RuleBook()
END = 2**62


@RULES.rule(aten.slice.Tensor)
def cut(
    context: Context, _: Call, x: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Result:
    """Every step-th element from start to end."""
    return _slice(context, x.name, axis(dim, x.rank), 0 if start is None else start, END if end is None else end, step)


@RULES.rule(aten.select.int)
def select(context: Context, _: Call, x: Value, dim: int, index: int) -> Result:
    """One element along a dimension."""
    return context.add("Gather", x.name, context.graph.constant(index, "int64"), axis=axis(dim, x.rank))


@RULES.rule(aten.split_with_sizes.default, aten.split.Tensor)
def split(context: Context, call: Call, x: Value, sizes: Sequence[int] | int, dim: int = 0) -> Result:
    """Consecutive pieces along a dimension."""
    dim = axis(dim, x.rank)
    lengths = [size(shape[dim]) for shape in call.shapes if shape is not None]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return tuple(_slice(context, x.name, dim, a, a + n, 1) for a, n in zip(starts, lengths, strict=True))


@RULES.rule(aten.slice_backward.default)
def cut_backward(
    context: Context, call: Call, gradient: Value, shape: Sequence[Any], dim: int, start: int, end: int, step: int
) -> Result:
    """Differentiate a slice of step one: zeros around the gradient."""
    whole, dim = size(call.shape[dim]), axis(dim, len(shape))
    before, after = [0] * len(shape), [0] * len(shape)
    length = size(gradient.shape[dim])
    name = gradient.name
    start, end, _ = slice(start, end).indices(whole)
    if step != 1:
        index = context.ints(*range(start, end, step))
        zeros = context.filled(call.shape, 0.0, call.dtype)
        index = context.add("Expand", _column(context, index, dim, len(shape)), context.dims(gradient.shape))
        return context.add("ScatterElements", zeros, index, name, axis=dim)
    before[dim], after[dim] = start, whole - start - length
    return context.add("Pad", name, context.ints(*before, *after), context.number(0.0, call.dtype))


@RULES.rule(aten.select_backward.default)
def select_backward(
    context: Context, call: Call, gradient: Value, shape: Sequence[Any], dim: int, index: int
) -> Result:
    """Differentiate taking one element along a dimension: zeros around the gradient."""
    dim, whole = axis(dim, len(shape)), size(shape[dim])
    before, after = [0] * len(shape), [0] * len(shape)
    before[dim] = axis(index, whole)
    after[dim] = whole - 1 - before[dim]
    name = context.add("Unsqueeze", gradient.name, context.ints(dim))
    return context.add("Pad", name, context.ints(*before, *after), context.number(0.0, call.dtype))


@RULES.rule(aten.slice_scatter.default)
def put_slice(
    context: Context,
    _: Call,
    x: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: Dim | None = None,
    step: int = 1,
) -> Result:
    """Overwrite consecutive elements along a dimension."""
    dim = axis(dim, x.rank)
    if not start and step == 1 and (end is None or end == x.shape[dim] or (isinstance(end, int) and end >= END)):
        return source.name
    whole = size(x.shape[dim])
    first, last, _step = slice(start, None if end is None else size(end)).indices(whole)
    if step != 1:
        raise Untranslatable("it overwrites every other element: use torch.where")
    pieces = [source.name]
    if first > 0:
        pieces.insert(0, _slice(context, x.name, dim, 0, first, 1))
    if last < whole:
        pieces.append(_slice(context, x.name, dim, last, whole, 1))
    return context.add("Concat", *pieces, axis=dim) if len(pieces) > 1 else source.name


@RULES.rule(aten.scatter.src, aten.scatter_add.default)
def scatter(context: Context, call: Call, x: Value, dim: int, index: Value, source: Value) -> Result:
    """Overwrite elements, or add to them, where an index points to along a dimension."""
    extra = {"reduction": "add"} if "add" in call.operator else {}
    return context.add("ScatterElements", x.name, index.name, source.name, axis=axis(dim, x.rank), **extra)


@RULES.rule(aten.scatter.value)
def scatter_number(context: Context, call: Call, x: Value, dim: int, index: Value, value: Number) -> Result:
    """Overwrite elements by a number where an index points to along a dimension."""
    source = context.filled(index.shape, value, call.dtype)
    return context.add("ScatterElements", x.name, index.name, source, axis=axis(dim, x.rank))


@RULES.rule(aten.embedding.default)
def embedding(context: Context, _: Call, weight: Value, index: Value, *__: Any) -> Result:
    """Look up a row of the weight for each index."""
    return context.add("Gather", weight.name, index.name, axis=0)


@RULES.rule(aten.embedding_dense_backward.default)
def embedding_backward(
    context: Context, call: Call, gradient: Value, index: Value, _: int, ignored: int, by_frequency: bool
) -> Result:
    """Each row's gradients added up; none for the row of padding."""
    if by_frequency:
        raise Untranslatable("gradients are not divided by how often an index is there: scale_grad_by_freq=False")
    name = gradient.name
    if ignored >= 0:
        unused = context.add("Equal", index.name, context.graph.constant(ignored, "int64"))
        none = context.number(0.0, call.dtype)
        name = context.add("Where", context.add("Unsqueeze", unused, context.ints(-1)), none, name)
    return _added_rows(context, call, index, name)


@RULES.rule(aten.index.Tensor)
def look_up(context: Context, _: Call, x: Value, indices: Sequence[Value | None]) -> Result:
    """Elements looked up along one dimension."""
    dim, index = _only(indices)
    return context.add("Gather", x.name, index.name, axis=dim)


@RULES.rule(aten.index_put.default)
def add_at(
    context: Context, call: Call, x: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False
) -> Result:
    """Differentiate looking elements up: add gradients where the elements came from."""
    dim, index = _only(indices)
    if not accumulate:
        raise Untranslatable("it overwrites elements by an index: use torch.where or torch.scatter")
    if not dim:
        return context.add("Add", x.name, _added_rows(context, call, index, source.name))
    # The dimension is brought to the front, where ScatterND looks, and back.
    order = [dim, *(d for d in range(x.rank) if d != dim)]
    places = [dim + i for i in range(index.rank)]
    rows = context.add("Transpose", source.name, perm=[*places, *(d for d in range(source.rank) if d not in places)])
    turned = dataclasses.replace(call, shapes=(tuple(call.shape[d] for d in order),))
    added = _added_rows(context, turned, index, rows)
    return context.add("Add", x.name, context.add("Transpose", added, perm=[order.index(d) for d in range(x.rank)]))


def _only(indices: Sequence[Value | None]) -> tuple[int, Value]:
    """Return the dimension and the index of a look-up along one dimension."""
    found = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(found) != 1 or found[0][1].dtype != torch.int64:
        raise Untranslatable("elements are looked up by one int64 index: use torch.gather or masks")
    return found[0]


def _added_rows(context: Context, call: Call, index: Value, source: str) -> str:
    """Zeros in the shape of the result, with a row of the source added at each index."""
    zeros = context.filled(call.shape, 0.0, call.dtype)
    places = context.add("Unsqueeze", index.name, context.ints(-1))
    return context.add("ScatterND", zeros, places, source, reduction="add")


@RULES.rule(aten.gather.default)
def gather(context: Context, _: Call, x: Value, dim: int, index: Value, **__: Any) -> Result:
    """Elements looked up along a dimension."""
    return context.add("GatherElements", x.name, index.name, axis=axis(dim, x.rank))


@RULES.rule(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss(
    context: Context, call: Call, logits: Value, target: Value, weight: Value | None, reduction: int, ignore: int
) -> Result:
    """Compute the negative log-likelihood of the target classes, and the total weight it is divided by."""
    each, weights = _class_terms(context, logits, target, weight, ignore)
    loss = context.add("Neg", context.add("Mul", each, weights))
    total = context.add("ReduceSum", weights, keepdims=0)
    if reduction == 0:
        return loss, total
    loss = context.reduced("ReduceSum", Value(loss, target.shape, call.dtype), range(target.rank))
    return (context.add("Div", loss, total) if reduction == 1 else loss), total


@RULES.rule(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(
    context: Context,
    call: Call,
    gradient: Value,
    logits: Value,
    target: Value,
    weight: Value | None,
    reduction: int,
    ignore: int,
    total: Value,
) -> Result:
    """Minus the gradient at the target class, nothing at the others."""
    _, weights = _class_terms(context, logits, target, weight, ignore)
    scale = context.add("Neg", gradient.name)
    if reduction == 1:
        scale = context.add("Div", scale, total.name)
    each = context.add("Mul", weights, scale)
    if reduction == 1:  # where everything is ignored the scale is infinite
        each = context.add("Where", _ignored(context, target, ignore), context.number(0.0, call.dtype), each)
    each = context.add("Unsqueeze", each, context.ints(1))
    hot = context.add(
        "OneHot",
        _known_class(context, target, ignore),
        context.graph.constant(size(logits.shape[1]), "int64"),
        context.graph.constant([0.0, 1.0], "float32"),
        axis=1,
    )
    return context.add("Mul", hot, each)


def _known_class(context: Context, target: Value, ignore: int) -> str:
    zero = context.graph.constant(0, "int64")
    return context.add("Where", _ignored(context, target, ignore), zero, target.name)


def _ignored(context: Context, target: Value, ignore: int) -> str:
    return context.add("Equal", target.name, context.graph.constant(ignore, "int64"))


def _class_terms(context: Context, logits: Value, target: Value, weight: Value | None, ignore: int) -> tuple[str, str]:
    """Return the log-probability of each target class and its weight, zero where ignored."""
    known = _known_class(context, target, ignore)
    picked = context.add("GatherElements", logits.name, context.add("Unsqueeze", known, context.ints(1)), axis=1)
    each = context.add("Squeeze", picked, context.ints(1))
    weights = context.add("Cast", context.add("Not", _ignored(context, target, ignore)), to=ELEMENT[logits.dtype])
    if weight is not None:
        weights = context.add("Mul", weights, context.add("Gather", weight.name, known, axis=0))
    return each, weights


def _slice(context: Context, name: str, dim: int, start: Dim, end: Dim, step: int) -> str:
    bounds = context.dims((start,)), context.dims((end,))
    return context.add("Slice", name, *bounds, context.ints(dim), context.ints(step))


def _column(context: Context, index: str, dim: int, rank: int) -> str:
    shape = [1] * rank
    shape[dim] = -1
    return context.add("Reshape", index, context.ints(*shape))
