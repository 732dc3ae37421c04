"""The tools of a lowering rule: values with their shapes, and the ONNX graph they go into."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from export.onnx_graph import ELEMENT, NUMPY, OnnxGraph
from export.trace import Batch, Dim

SEED = "seed"
CHUNK = 4096


class Untranslatable(Exception):
    """A rule cannot translate an operator with these arguments; the text says what to use instead."""


@dataclass(frozen=True)
class Value:
    """An ONNX value: its name, its shape (with `Batch` where the micro-batch is) and its type."""

    name: str
    shape: tuple[Dim, ...]
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


Number = int | float | bool | Batch
Result = str | tuple[str | None, ...]


@dataclass(frozen=True)
class Call:
    """One operator to translate: its result's shapes and types, and which of its results are used."""

    operator: str
    module: str
    shapes: tuple[tuple[Dim, ...] | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    used: frozenset[int]
    draw: int
    """The number of random operators with the same seed before it."""
    seed: str
    """The input that fixes what it draws."""

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the only result."""
        assert self.shapes[0] is not None
        return self.shapes[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the only result."""
        assert self.dtypes[0] is not None
        return self.dtypes[0]


class Context:
    """The graph under construction and what rules need often."""

    def __init__(self, graph: OnnxGraph, batched_input: str, lowered: Callable[..., onnx.ModelProto]) -> None:
        """`lowered` makes a graph of a trace, as `lower` does, for a node that has one."""
        self.graph = graph
        self.lowered = lowered
        self.add = graph.add
        self.ints = graph.ints
        self._batched_input = batched_input
        self.seeds: dict[str, None] = {}
        """The seeds that the graph needs as inputs."""

    def seed(self, call: Call) -> str:
        """Return the seed of a random operator, a scalar of int64."""
        self.seeds[call.seed] = None
        return call.seed

    def batch(self) -> str:
        """Return the micro-batch as an int64 vector of one element."""
        return self.add("Shape", self._batched_input, start=0, end=1)

    def number(self, value: Number, dtype: torch.dtype) -> str:
        """Return a scalar, computed from the batch where it varies with it."""
        if not isinstance(value, Batch):
            return self.graph.constant(value, NUMPY[dtype])
        factor = self.graph.constant(value.factor, NUMPY[dtype])
        batch = self.add("Cast", self.add("Squeeze", self.batch(), self.ints(0)), to=ELEMENT[dtype])
        return self.add("Div", factor, batch) if value.inverse else self.add("Mul", factor, batch)

    @staticmethod
    def common(x: Value, y: Value | Number) -> torch.dtype:
        """Return the type in which PyTorch computes with two operands."""
        if isinstance(y, Value):
            return torch.promote_types(x.dtype, y.dtype)
        return torch.promote_types(x.dtype, torch.float32) if _fractional(y) else x.dtype

    def operand(self, value: Value | Number, dtype: torch.dtype) -> str:
        """Return an operand of an elementwise operator, as `dtype`."""
        if isinstance(value, Value):
            return value.name if value.dtype == dtype else self.add("Cast", value.name, to=ELEMENT[dtype])
        return self.number(value, dtype)

    def dims(self, shape: Sequence[Dim]) -> str:
        """Return a shape as an int64 vector, exact also where the batch is in it."""
        if not any(isinstance(dim, Batch) for dim in shape):
            return self.ints(*(int(d) for d in shape if not isinstance(d, Batch)))
        pieces = []
        for dim in shape:
            if isinstance(dim, Batch):
                pieces.append(
                    self.add("Mul", self.batch(), self.ints(int(dim.factor))) if dim.factor != 1 else self.batch()
                )
            else:
                pieces.append(self.ints(dim))
        return self.add("Concat", *pieces, axis=0) if len(pieces) > 1 else pieces[0]

    def reshape(self, name: str, shape: Sequence[Dim]) -> str:
        """Reshape; a single batched dimension is left to be inferred."""
        if sum(isinstance(dim, Batch) for dim in shape) == 1:
            return self.add("Reshape", name, self.ints(*(-1 if isinstance(d, Batch) else d for d in shape)))
        return self.add("Reshape", name, self.dims(shape))

    def reshape_to(self, name: str, *dims: int) -> str:
        """Reshape to numbers as ONNX takes them: 0 keeps a dimension, -1 is inferred."""
        return self.add("Reshape", name, self.ints(*dims))

    def reduced(self, operator: str, value: Value, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """Sum, or take the mean, over some dimensions, in steps from the last one on.

        onnxruntime adds up the numbers of a reduction in a row: 400,000 equal ones give a sum that is 0.5 % off. So no
        step is over more than CHUNK numbers, where no single dimension has more, and the batch is a step of its own.
        """
        steps: list[list[int]] = [[]]
        count = 1
        for place in sorted(axes, reverse=True):
            dim = value.shape[place]
            count *= CHUNK if isinstance(dim, Batch) else dim
            if count > CHUNK and steps[-1]:
                steps.append([])
                count = CHUNK if isinstance(dim, Batch) else dim
            steps[-1].insert(0, place)
        name = value.name
        for step in steps[:-1]:
            name = self.add(operator, name, self.ints(*step), keepdims=1)
        last = steps[-1] if keepdims else sorted(axes)
        return self.add(operator, name, self.ints(*last), keepdims=int(keepdims))

    def filled(self, shape: Sequence[Dim], value: Number, dtype: torch.dtype) -> str:
        """Fill a tensor with one value."""
        return self.add("Expand", self.number(value, dtype), self.dims(shape)) if shape else self.number(value, dtype)


Rule = Callable[..., Result]


def size(dim: Dim) -> int:
    """Return a dimension that must be fixed. Raises Untranslatable."""
    if isinstance(dim, Batch):
        raise Untranslatable("it works along the batch: leave the first dimension as it is")
    return dim


def elements(shape: Sequence[Dim]) -> int:
    """Return the number of elements of a fixed shape."""
    return math.prod(size(dim) for dim in shape)


def each(value: Sequence[int] | int, count: int) -> list[int]:
    """Return a number for each of the last dimensions, from one or as many."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _fractional(number: Number) -> bool:
    return isinstance(number, float) or (isinstance(number, Batch) and number.inverse)


def axis(dim: int, rank: int) -> int:
    """Return a dimension counted from the front."""
    return dim + rank if dim < 0 else dim


class RuleBook(dict[Any, Rule]):
    """Rules by operator, added by decorating them."""

    def rule(self, *operators: Any) -> Callable[[Rule], Rule]:
        """Use the decorated function for these operators."""

        def decorate(function: Rule) -> Rule:
            self.update(dict.fromkeys(operators, function))
            return function

        return decorate
