"""Operators that pick elements: slices, and the losses that look a class up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Number, Result, RuleBook, Untranslatable, Value, axis, size
from export.onnx_graph import ELEMENT
from export.trace import Batch, Dim

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
@RULES.rule(aten.unsafe_split_with_sizes.default, aten.unsafe_split.Tensor)
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
        index = _column(context, context.ints(*range(first, last, step)), dim, x.rank)
        index = context.add("Expand", index, context.dims(source.shape))
        return context.add("ScatterElements", x.name, index, source.name, axis=dim)
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


@RULES.rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def look_up(context: Context, call: Call, x: Value, indices: Sequence[Value | None]) -> Result:
    """Elements looked up along one dimension, or by several indices together."""
    found = _found(indices)
    if len(found) == 1:
        dim, index = found[0]
        return context.add("Gather", x.name, index.name, axis=dim)
    places = _Places(context, x, found, call.shape)
    return places.back(context.add("GatherND", places.front(x.name), places.index()))


@RULES.rule(aten.index_put.default, aten._unsafe_index_put.default)
def put_at(
    context: Context, call: Call, x: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False
) -> Result:
    """Overwrite elements by indices, or add to them, which differentiates looking them up."""
    found = _found(indices)
    if len(found) > 1 or not accumulate or found[0][1].rank + x.rank - 1 != source.rank:
        return _put(context, x, found, source, accumulate)
    dim, index = found[0]
    if not dim:
        return context.add("Add", x.name, _added_rows(context, call, index, source.name))
    # The dimension is brought to the front, where ScatterND looks, and back.
    order = [dim, *(d for d in range(x.rank) if d != dim)]
    places = [dim + i for i in range(index.rank)]
    rows = context.add("Transpose", source.name, perm=[*places, *(d for d in range(source.rank) if d not in places)])
    turned = dataclasses.replace(call, shapes=(tuple(call.shape[d] for d in order),))
    added = _added_rows(context, turned, index, rows)
    return context.add("Add", x.name, context.add("Transpose", added, perm=[order.index(d) for d in range(x.rank)]))


def _put(context: Context, x: Value, found: Sequence[tuple[int, Value]], source: Value, accumulate: bool) -> str:
    rank = max(index.rank for _, index in found)
    common: list[Dim] = [1] * rank
    for _, index in found:
        for i, dim in enumerate(index.shape, rank - index.rank):
            common[i] = dim if common[i] == 1 else common[i]
    dims = [dim for dim, _ in found]
    whole: list[Dim] = [d for i, d in enumerate(x.shape) if i not in dims]
    first = dims[0] if _adjacent(dims) else 0
    whole[first:first] = common
    places = _Places(context, x, found, tuple(whole))
    values = source.name if source.shape == tuple(whole) else context.add("Expand", source.name, context.dims(whole))
    extra = {"reduction": "add"} if accumulate else {}
    written = context.add("ScatterND", places.front(x.name), places.index(), places.ahead(values), **extra)
    return context.add("Transpose", written, perm=[places.order.index(d) for d in range(x.rank)])


class _Places:
    """Elements by several indices together: their dimensions at the front, where GatherND and ScatterND look.

    The result has the indices' common dimensions where their dimensions are, or first where those are not adjacent.
    """

    def __init__(self, context: Context, x: Value, found: Sequence[tuple[int, Value]], shape: Sequence[Dim]) -> None:
        self._context, self._found = context, found
        dims = [dim for dim, _ in found]
        self.order = [*dims, *(d for d in range(x.rank) if d not in dims)]
        self._rank = max(index.rank for _, index in found)
        self._first = dims[0] if _adjacent(dims) else 0
        self._common = list(shape[self._first : self._first + self._rank])
        rest = [d for d in range(len(shape)) if not self._first <= d < self._first + self._rank]
        self._ahead = [*range(self._first, self._first + self._rank), *rest]

    def front(self, name: str) -> str:
        """Return x with the looked up dimensions first."""
        return self._context.add("Transpose", name, perm=self.order)

    def index(self) -> str:
        """Return all indices as one (common dimensions …, indices)."""
        add, ints = self._context.add, self._context.ints
        columns = []
        for _, index in self._found:
            name = self._context.operand(index, torch.int64)
            if index.shape != tuple(self._common):
                name = add("Expand", name, self._context.dims(self._common)) if self._common else name
            columns.append(add("Unsqueeze", name, ints(-1)))
        return add("Concat", *columns, axis=-1) if len(columns) > 1 else columns[0]

    def ahead(self, name: str) -> str:
        """Return what has the result's shape with the common dimensions first."""
        return self._context.add("Transpose", name, perm=self._ahead)

    def back(self, name: str) -> str:
        """Return what was looked up in the result's shape."""
        return self._context.add("Transpose", name, perm=[self._ahead.index(d) for d in range(len(self._ahead))])


def _adjacent(dims: Sequence[int]) -> bool:
    return list(dims) == list(range(dims[0], dims[0] + len(dims)))


def _found(indices: Sequence[Value | None]) -> list[tuple[int, Value]]:
    """Return the indices by the dimension along which they look."""
    found = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if any(index.dtype not in (torch.int64, torch.int32) for _, index in found):
        raise Untranslatable("elements are looked up by whole numbers: use torch.where for a mask")
    return found


@RULES.rule(aten.diagonal.default)
def diagonal(context: Context, call: Call, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> Result:
    """Return the elements of a diagonal as the last dimension."""
    pair = [axis(first, x.rank), axis(second, x.rank)]
    order = [*(d for d in range(x.rank) if d not in pair), *pair]
    turned = Value(context.add("Transpose", x.name, perm=order), tuple(x.shape[d] for d in order), x.dtype)
    length = call.shape[-1]
    if isinstance(length, Batch) and turned.shape[-1] != turned.shape[-2]:
        raise Untranslatable("the diagonal works along the batch, and ends where it is short: use torch.where")
    whole = context.number(length, torch.int64)
    starts = (max(-offset, 0), max(offset, 0))
    places: list[Value | None] = [None] * (x.rank - 2)
    for start in starts:
        counted = context.add("Range", context.number(0, torch.int64), whole, context.number(1, torch.int64))
        name = context.add("Add", counted, context.number(start, torch.int64)) if start else counted
        places.append(Value(name, (length,), torch.int64))
    return look_up(context, call, turned, places)


@RULES.rule(aten.unfold.default)
def windows(context: Context, call: Call, x: Value, dim: int, count: int, step: int) -> Result:
    """Return the windows along a dimension, which then counts them; what they hold is the last dimension."""
    if not x.rank:
        return context.reshape(x.name, call.shape)
    dim = axis(dim, x.rank)
    starts = range(0, size(x.shape[dim]) - count + 1, step)
    places = context.graph.constant([[start + i for i in range(count)] for start in starts], "int64")
    picked = context.add("Gather", x.name, places, axis=dim)
    return context.add("Transpose", picked, perm=[*(d for d in range(x.rank + 1) if d != dim + 1), dim + 1])


@RULES.rule(aten.scatter_reduce.two)
def scatter_reduced(
    context: Context, _: Call, x: Value, dim: int, index: Value, source: Value, reduce: str, **__: Any
) -> Result:
    """Reduce elements into those that an index points to along a dimension."""
    reduction = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}[reduce]
    names = x.name, index.name, source.name
    return context.add("ScatterElements", *names, axis=axis(dim, x.rank), reduction=reduction)


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
    if target.rank:
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
    classes = min(1, logits.rank - 1)
    each = context.add("Unsqueeze", each, context.ints(classes))
    known = _known_class(context, target, ignore)
    hot = context.add(
        "OneHot",
        known if target.rank else context.reshape_to(known, 1),
        context.number(logits.shape[classes], torch.int64),
        context.graph.constant([0.0, 1.0], "float32"),
        axis=classes,
    )
    return context.add("Mul", hot if target.rank else context.reshape(hot, logits.shape), each)


def _known_class(context: Context, target: Value, ignore: int) -> str:
    zero = context.graph.constant(0, "int64")
    return context.add("Where", _ignored(context, target, ignore), zero, target.name)


def _ignored(context: Context, target: Value, ignore: int) -> str:
    return context.add("Equal", target.name, context.graph.constant(ignore, "int64"))


def _class_terms(context: Context, logits: Value, target: Value, weight: Value | None, ignore: int) -> tuple[str, str]:
    """Return the log-probability of each target class and its weight, zero where ignored."""
    known = _known_class(context, target, ignore)
    classes = min(1, logits.rank - 1)
    places = context.add("Unsqueeze", known, context.ints(classes))
    each = context.add("GatherElements", logits.name, places, axis=classes)
    each = context.add("Squeeze", each, context.ints(classes))
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
