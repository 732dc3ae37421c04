"""Operators that move or repeat elements, and constants."""

from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import Call, Context, Number, Result, RuleBook, Value, axis, elements, size
from export.onnx_graph import ELEMENT
from export.trace import Batch

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(aten.view.default, aten._unsafe_view.default)
@RULES.rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default)
def reshape(context: Context, call: Call, x: Value, *_: Any) -> Result:
    """Give the same elements another shape."""
    return context.reshape(x.name, call.shape)


@RULES.rule(aten.permute.default)
def permute(context: Context, _: Call, x: Value, dims: Sequence[int]) -> Result:
    """Dimensions in another order."""
    if x.rank < 2:
        return x.name
    return context.add("Transpose", x.name, perm=[axis(d, x.rank) for d in dims])


@RULES.rule(aten.transpose.int, aten.t.default)
def transpose(context: Context, _: Call, x: Value, first: int = 0, second: int = 1) -> Result:
    """Two dimensions exchanged."""
    if x.rank < 2:
        return x.name
    order = list(range(x.rank))
    first, second = axis(first, x.rank), axis(second, x.rank)
    order[first], order[second] = second, first
    return context.add("Transpose", x.name, perm=order)


@RULES.rule(aten.roll.default)
def roll(context: Context, call: Call, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Result:
    """Move elements along dimensions; what leaves at one end comes in at the other."""
    if not dims:
        flat = roll(context, call, Value(context.reshape_to(x.name, -1), (elements(x.shape),), x.dtype), shifts, (0,))
        return context.reshape(str(flat), x.shape)
    name = x.name
    for shift, dim in zip(shifts, dims, strict=True):
        length = size(x.shape[dim])
        cut = length - shift % length
        if cut == length:
            continue
        along = context.ints(axis(dim, x.rank))
        last = context.add("Slice", name, context.ints(cut), context.ints(length), along)
        first = context.add("Slice", name, context.ints(0), context.ints(cut), along)
        name = context.add("Concat", last, first, axis=axis(dim, x.rank))
    return name


@RULES.rule(aten.tril.default, aten.triu.default)
def triangle(context: Context, call: Call, x: Value, diagonal: int = 0) -> Result:
    """Zeros above the diagonal, or under it."""
    offset = context.graph.constant(diagonal, "int64")
    truth = x.dtype == torch.bool
    name = context.add("Cast", x.name, to=ELEMENT[torch.int64]) if truth else x.name
    name = context.add("Trilu", name, offset, upper=int("triu" in call.operator))
    return context.add("Cast", name, to=ELEMENT[torch.bool]) if truth else name


@RULES.rule(aten.copy.default)
def overwrite(context: Context, call: Call, _: Value, source: Value, *__: Any) -> Result:
    """Give the source the shape and type of what it overwrites."""
    name = context.operand(source, call.dtype)
    return name if source.shape == call.shape else context.add("Expand", name, context.dims(call.shape))


@RULES.rule(aten.expand.default)
def expand(context: Context, call: Call, x: Value, *_: Any, **__: Any) -> Result:
    """Repeat along dimensions of one element."""
    return x.name if x.shape == call.shape else context.add("Expand", x.name, context.dims(call.shape))


@RULES.rule(aten.repeat.default)
def repeat(context: Context, call: Call, x: Value, times: Sequence[int]) -> Result:
    """Repeat the whole tensor several times along each dimension."""
    added = len(times) - x.rank
    name = context.reshape(x.name, (*[1] * added, *x.shape)) if added else x.name
    return context.add("Tile", name, context.dims(times))


@RULES.rule(aten.flip.default)
def flip(context: Context, _: Call, x: Value, dims: Sequence[int]) -> Result:
    """Reverse some dimensions."""
    count = len(dims)
    first, last, step = (context.ints(*[value] * count) for value in (-1, -(2**62), -1))
    return context.add("Slice", x.name, first, last, context.ints(*(axis(d, x.rank) for d in dims)), step)


@RULES.rule(aten.cat.default)
def concatenate(context: Context, call: Call, parts: Sequence[Value], dim: int = 0) -> Result:
    """Tensors one after another along a dimension."""
    return context.add("Concat", *(part.name for part in parts), axis=axis(dim, len(call.shape)))


@RULES.rule(aten.full.default, aten.new_full.default)
@RULES.rule(aten.fill.Scalar, aten.zero.default, aten._efficientzerotensor.default)
@RULES.rule(aten.empty_like.default, aten.empty.memory_format, aten.new_empty.default, aten.new_empty_strided.default)
@RULES.rule(aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default)
@RULES.rule(
    aten.ones.default, aten.new_ones.default, aten.ones_like.default, aten.full_like.default, aten.scalar_tensor.default
)
def filled(context: Context, call: Call, *args: Any, **_: Any) -> Result:
    """Fill a tensor with one value."""
    kind = call.operator.split(".")[1]
    value: Number
    if kind == "scalar_tensor":
        value = args[0]
    elif "full" in kind or kind == "fill":
        value = args[-1]
    else:
        value = 1.0 if "ones" in kind else 0.0
    return context.filled(call.shape, value, call.dtype)


@RULES.rule(aten.fill.Tensor)
def filled_with(context: Context, call: Call, _: Value, value: Value) -> Result:
    """Fill a tensor with one value that is computed."""
    name = context.operand(value, call.dtype)
    return context.add("Expand", name, context.dims(call.shape)) if call.shape else name


@RULES.rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def count(context: Context, call: Call, *bounds: Number, **_: Any) -> Result:
    """Numbers at equal distances, as a constant where the batch is not among them."""
    fixed = [bound for bound in bounds if not isinstance(bound, Batch)]
    if len(fixed) < len(bounds):
        first = bounds[0] if len(bounds) > 1 else 0
        step = bounds[2] if len(bounds) > 2 else 1
        return context.add(
            "Range", *(context.number(v, call.dtype) for v in (first, bounds[-1 if len(bounds) < 3 else 1], step))
        )
    return context.graph.constant(torch.arange(*fixed, dtype=call.dtype).numpy())


@RULES.rule(aten.eye.default, aten.eye.m)
def identity(context: Context, call: Call, *_: Any, **__: Any) -> Result:
    """Ones on the diagonal, as a constant where it is not as large as the batch."""
    if any(isinstance(dim, Batch) for dim in call.shape):
        zero, one = context.number(0, torch.int64), context.number(1, torch.int64)
        down, across = (context.add("Range", zero, context.number(dim, torch.int64), one) for dim in call.shape)
        equal = context.add("Equal", context.add("Unsqueeze", down, context.ints(1)), across)
        return context.add("Cast", equal, to=ELEMENT[call.dtype])
    rows, columns = map(size, call.shape)
    return context.graph.constant(torch.eye(rows, columns, dtype=call.dtype).numpy())


@RULES.rule(aten.constant_pad_nd.default)
def pad(context: Context, call: Call, x: Value, padding: Sequence[int], value: Number = 0.0) -> Result:
    """Pad the last dimensions with a value; a negative width cuts."""
    before, after = [0] * x.rank, [0] * x.rank
    for i in range(len(padding) // 2):
        before[x.rank - 1 - i], after[x.rank - 1 - i] = padding[2 * i], padding[2 * i + 1]
    if any(
        isinstance(d, int) and d + min(a, 0) + min(b, 0) <= 0 for d, a, b in zip(x.shape, before, after, strict=True)
    ):
        return context.filled(call.shape, value, call.dtype)  # nothing of x is left, which Pad refuses
    return context.add("Pad", x.name, context.ints(*before, *after), context.number(value, call.dtype))
