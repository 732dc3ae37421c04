"""Complex numbers and Fourier transforms: a complex tensor is a real one whose last dimension has both parts.

A transform of a fixed length is a product with the matrices of its cosines and sines: for the frames of a spectrogram
that is as fast as a fast transform on a board, and it needs no operator that the engine lacks a gradient of.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.lowering import pointwise, reduction, selection, shaping
from export.lowering.context import Call, Context, Number, Result, Rule, RuleBook, Value, axis, size
from export.onnx_graph import ELEMENT
from export.trace import Dim

aten = torch.ops.aten
RULES = RuleBook()
COMPLEX = (torch.complex64, torch.complex128)

FORWARD, BACKWARD = -1.0, 1.0
"""The sign of a transform's exponent."""


def involves(values: Sequence[Any], dtypes: Sequence[torch.dtype | None]) -> bool:
    """Tell whether an operator takes or gives complex numbers."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else (value,))]
    return any(d in COMPLEX for d in dtypes) or any(isinstance(v, Value) and v.dtype in COMPLEX for v in flat)


def constant(context: Context, tensor: torch.Tensor) -> Value:
    """Return a constant of complex numbers."""
    pairs = torch.view_as_real(tensor.resolve_conj()).to(torch.float32)
    return Value(context.graph.constant(pairs.numpy()), tuple(tensor.shape), torch.complex64)


def as_pairs(value: Any) -> Any:
    """Return a complex value as the real one that it is in the graph; everything else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(as_pairs(item) for item in value)
    if isinstance(value, Value) and value.dtype in COMPLEX:
        return Value(value.name, (*value.shape, 2), torch.float32)
    return value


def _same_on_pairs(rule: Rule) -> Rule:
    """Return the rule of an operator that does the same to real and imaginary parts, and leaves the last dimension."""

    def translate(context: Context, call: Call, x: Any, *args: Any, **kwargs: Any) -> Result:
        rank = x[0].rank if isinstance(x, list | tuple) else x.rank
        given = [as_pairs(x), *(_from_the_front(as_pairs(arg), rank, call) for arg in args)]
        return rule(context, _pairs(call), *given, **kwargs)

    return translate


def _pairs(call: Call) -> Call:
    shapes = tuple(None if shape is None else (*shape, 2) for shape in call.shapes)
    return dataclasses.replace(call, shapes=shapes, dtypes=(torch.float32,) * len(shapes))


def _from_the_front(argument: Any, rank: int, call: Call) -> Any:
    """Count a dimension that is given from the end from the front, where none is added."""
    name = call.operator.split(".")[1]
    if name == "unsqueeze":
        rank += 1
    if isinstance(argument, int) and not isinstance(argument, bool) and argument < 0 and name in BY_DIMENSION:
        return argument + rank
    if isinstance(argument, list | tuple) and name in BY_DIMENSIONS:
        found = [d + rank if isinstance(d, int) and d < 0 else d for d in argument]
        return [*found, rank] if name == "permute" else found
    return argument


BY_DIMENSION = ("transpose", "squeeze", "unsqueeze", "cat", "select", "slice")
BY_DIMENSIONS = ("permute", "squeeze", "flip", "sum", "mean", "roll")

for operator in (
    *(aten.view.default, aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default),
    *(aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.expand.default, aten.flip.default),
    *(aten.cat.default, aten.roll.default),
):
    RULES[operator] = _same_on_pairs(shaping.RULES[operator])
for operator in (aten.slice.Tensor, aten.select.int):
    RULES[operator] = _same_on_pairs(selection.RULES[operator])
for operator in (aten.neg.default, aten.clone.default, aten.detach.default):
    RULES[operator] = _same_on_pairs(pointwise.RULES[operator])
for operator in (aten.sum.dim_IntList, aten.mean.dim):
    RULES[operator] = _same_on_pairs(reduction.RULES[operator])


@RULES.rule(aten.slice_backward.default, aten.select_backward.default)
def cut_backward(context: Context, call: Call, gradient: Value, shape: Sequence[Any], dim: int, *rest: Any) -> Result:
    """Differentiate a cut."""
    rule = selection.RULES[getattr(aten, call.operator.split(".")[1]).default]
    return rule(context, _pairs(call), as_pairs(gradient), [*shape, 2], axis(dim, len(shape)), *rest)


@RULES.rule(aten.slice_scatter.default)
def put_slice(context: Context, call: Call, x: Value, source: Value, dim: int = 0, *rest: Any) -> Result:
    """Overwrite consecutive elements along a dimension."""
    given = (Value(_whole(context, value), (*value.shape, 2), torch.float32) for value in (x, source))
    return selection.put_slice(context, _pairs(call), *given, axis(dim, x.rank), *rest)


@RULES.rule(aten.constant_pad_nd.default)
def pad(context: Context, call: Call, x: Value, padding: Sequence[int], value: float = 0.0) -> Result:
    """Pad the last dimensions with a value; a negative width cuts."""
    return shaping.pad(context, _pairs(call), as_pairs(x), [0, 0, *padding], value)


@RULES.rule(aten.view_as_real.default, aten.view_as_complex.default)
def same(_: Context, __: Call, x: Value) -> Result:
    """Take a pair for a number, or a number for a pair."""
    return x.name


@RULES.rule(aten.new_zeros.default)
def zeros(context: Context, call: Call, *_: Any, **__: Any) -> Result:
    """Fill a tensor with zeros."""
    return context.filled((*call.shape, 2), 0.0, torch.float32)


@RULES.rule(aten.complex.default)
def together(context: Context, call: Call, real: Value, imaginary: Value) -> Result:
    """Make complex numbers of their parts."""
    parts = (
        part.name if part.shape == call.shape else context.add("Expand", part.name, context.dims(call.shape))
        for part in (real, imaginary)
    )
    return _joined(context, *parts)


@RULES.rule(aten._to_copy.default)
def convert(context: Context, call: Call, x: Value, **_: Any) -> Result:
    """Give a real number an imaginary part of zero, or leave the imaginary part out."""
    if call.dtype in COMPLEX:
        if x.dtype in COMPLEX:
            return x.name
        real = context.operand(x, torch.float32)
        return _joined(context, real, context.filled(x.shape, 0.0, torch.float32))
    real = _parts(context, x.name)[0]
    return real if call.dtype == torch.float32 else context.add("Cast", real, to=ELEMENT[call.dtype])


@RULES.rule(aten.copy.default)
def overwrite(context: Context, call: Call, _: Value, source: Value, *__: Any) -> Result:
    """Give the source the shape of what it overwrites, as complex numbers."""
    name = _whole(context, source)
    return name if source.shape == call.shape else context.add("Expand", name, context.dims((*call.shape, 2)))


@RULES.rule(aten._conj.default, aten._conj_physical.default)
def conjugate(context: Context, _: Call, x: Value | complex) -> Result:
    """Turn the sign of the imaginary part."""
    return context.add("Mul", _whole(context, x), context.graph.constant([1.0, -1.0], "float32"))


@RULES.rule(aten.abs.default)
def absolute(context: Context, _: Call, x: Value) -> Result:
    """√(re² + im²)."""
    return context.add("Sqrt", _square(context, x))


@RULES.rule(aten.sgn.default)
def direction(context: Context, _: Call, x: Value) -> Result:
    """x / |x|, and zero of zero."""
    length = context.add("Unsqueeze", context.add("Sqrt", _square(context, x)), context.ints(-1))
    zero = context.number(0.0, torch.float32)
    none = context.add("Equal", length, zero)
    safe = context.add("Where", none, context.number(1.0, torch.float32), length)
    return context.add("Where", none, zero, context.add("Div", x.name, safe))


@RULES.rule(aten.add.Tensor, aten.sub.Tensor)
def add(context: Context, call: Call, x: Value, y: Value | complex, alpha: Number = 1) -> Result:
    """x ± alpha · y."""
    left, right = (_whole(context, value) for value in (x, y))
    if alpha != 1:
        right = context.add("Mul", right, context.number(alpha, torch.float32))
    return context.add("Add" if "add" in call.operator else "Sub", left, right)


@RULES.rule(aten.mul.Tensor, aten.mul.Scalar)
def multiply(context: Context, _: Call, x: Value, y: Value | complex) -> Result:
    """Multiply complex numbers, or complex ones by real ones."""
    if x.dtype not in COMPLEX and isinstance(y, Value):
        x, y = y, x
    if x.dtype in COMPLEX and not _is_complex(y):
        return context.add("Mul", x.name, _real(context, y))
    return _product(context, _whole(context, x), _whole(context, y))


@RULES.rule(aten.div.Tensor, aten.div.Scalar)
def divide(context: Context, _: Call, x: Value, y: Value | complex) -> Result:
    """Divide complex numbers, by multiplying with the conjugate."""
    if not _is_complex(y):
        return context.add("Div", _whole(context, x), _real(context, y))
    return _product(context, _whole(context, x), _inverse(context, _whole(context, y)))


@RULES.rule(aten.reciprocal.default)
def reciprocal(context: Context, _: Call, x: Value) -> Result:
    """1 / x."""
    return _inverse(context, x.name)


def _inverse(context: Context, name: str) -> str:
    squares = context.add("ReduceSum", context.add("Mul", name, name), context.ints(-1), keepdims=1)
    return context.add("Div", context.add("Mul", name, context.graph.constant([1.0, -1.0], "float32")), squares)


def _product(context: Context, left: str, right: str) -> str:
    (a, b), (c, d) = _parts(context, left), _parts(context, right)
    product = context.add
    real = product("Sub", product("Mul", a, c), product("Mul", b, d))
    return _joined(context, real, product("Add", product("Mul", a, d), product("Mul", b, c)))


def _is_complex(y: Value | complex) -> bool:
    return y.dtype in COMPLEX if isinstance(y, Value) else isinstance(y, complex)


def _real(context: Context, y: Any) -> str:
    if not isinstance(y, Value):
        return context.number(y, torch.float32)
    return context.add("Unsqueeze", context.operand(y, torch.float32), context.ints(-1))


def _whole(context: Context, x: Value | complex) -> str:
    if not isinstance(x, Value):
        return context.graph.constant([complex(x).real, complex(x).imag], "float32")
    if x.dtype in COMPLEX:
        return x.name
    return _joined(context, context.operand(x, torch.float32), context.filled(x.shape, 0.0, torch.float32))


def _parts(context: Context, name: str) -> tuple[str, str]:
    first, second = (context.add("Gather", name, context.graph.constant(i, "int64"), axis=-1) for i in (0, 1))
    return first, second


def _joined(context: Context, real: str, imaginary: str) -> str:
    pair = (context.add("Unsqueeze", part, context.ints(-1)) for part in (real, imaginary))
    return context.add("Concat", *pair, axis=-1)


def _square(context: Context, x: Value) -> str:
    return context.add("ReduceSum", context.add("Mul", x.name, x.name), context.ints(-1), keepdims=0)


@RULES.rule(aten._fft_r2c.default)
def of_real(context: Context, _: Call, x: Value, dims: Sequence[int], normal: int, one_sided: bool) -> Result:
    """Transform real numbers; of the last of the dimensions the half that says all, where `one_sided`."""
    *others, last = (axis(d, x.rank) for d in dims)
    length = size(x.shape[last])
    scale = _scale([size(x.shape[d]) for d in (*others, last)], normal)
    cosines, sines = _waves(length, FORWARD, length // 2 + 1 if one_sided else length)
    parts = (_along(context, x.name, x.rank, last, wave * scale) for wave in (cosines, sines))
    name, shape = _joined(context, *parts), list(x.shape)
    shape[last] = cosines.shape[1]
    return _transformed(context, name, shape, others, FORWARD, 1.0)


@RULES.rule(aten._fft_c2c.default)
def of_complex(context: Context, _: Call, x: Value, dims: Sequence[int], normal: int, forward: bool) -> Result:
    """Transform complex numbers."""
    places = [axis(d, x.rank) for d in dims]
    scale = _scale([size(x.shape[d]) for d in places], normal)
    return _transformed(context, x.name, x.shape, places, FORWARD if forward else BACKWARD, scale)


@RULES.rule(aten._fft_c2r.default)
def to_real(context: Context, _: Call, x: Value, dims: Sequence[int], normal: int, length: int) -> Result:
    """Transform back into real numbers, of the half of the last of the dimensions."""
    *others, last = (axis(d, x.rank) for d in dims)
    scale = _scale([*(size(x.shape[d]) for d in others), length], normal)
    name = _transformed(context, x.name, x.shape, others, BACKWARD, 1.0)
    real, imaginary = _parts(context, name)
    cosines, sines = (wave.T for wave in _waves(length, BACKWARD, length // 2 + 1))  # (half, length)
    twice = np.full((len(cosines), 1), 2.0)  # what is left out is the conjugate of what is there
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    left = _along(context, real, x.rank, last, cosines * twice * scale)
    return context.add("Sub", left, _along(context, imaginary, x.rank, last, sines * twice * scale))


def _transformed(
    context: Context, name: str, shape: Sequence[Dim], dims: Sequence[int], sign: float, scale: float
) -> str:
    """Transform complex numbers along some dimensions."""
    for dim in dims:
        cosines, sines = (wave * scale for wave in _waves(size(shape[dim]), sign, size(shape[dim])))
        scale = 1.0
        real, imaginary = _parts(context, name)
        rank = len(shape)
        first = context.add(
            "Sub", _along(context, real, rank, dim, cosines), _along(context, imaginary, rank, dim, sines)
        )
        second = context.add(
            "Add", _along(context, real, rank, dim, sines), _along(context, imaginary, rank, dim, cosines)
        )
        name = _joined(context, first, second)
    return name if scale == 1.0 else context.add("Mul", name, context.number(scale, torch.float32))


def _waves(length: int, sign: float, kept: int) -> tuple[Any, Any]:
    """Return cosines and sines of a transform, (length, kept)."""
    # The product of places is taken modulo the length first, where it is exact.
    turns = np.outer(np.arange(length), np.arange(kept)) % length * (2 * np.pi / length)
    return np.cos(turns), sign * np.sin(turns)


def _along(context: Context, name: str, rank: int, dim: int, matrix: Any) -> str:
    """Multiply a dimension by a matrix (source, target)."""
    constant = context.graph.constant(np.ascontiguousarray(matrix.astype(np.float32)))
    if dim == rank - 1:
        return context.add("MatMul", name, constant)
    order = [*(d for d in range(rank) if d != dim), dim]
    turned = context.add("MatMul", context.add("Transpose", name, perm=order), constant)
    return context.add("Transpose", turned, perm=[order.index(d) for d in range(rank)])


def _scale(lengths: Sequence[int], normal: int) -> float:
    """Return what a transform is divided by: nothing, the root of its length, or its length."""
    return float(np.prod(lengths) ** {0: 0.0, 1: -0.5, 2: -1.0}[normal])
