"""A lower bound of what a graph's arrays take, from the graph alone: a small file may ask for terabytes.

Rules
- Each array is at least as large as follows from the constants and from the operators before it; inputs count one
  element. So a graph that is refused is too large whatever it is fed, and no graph is refused that could run.
- It is a first line and no proof: what grows by its inputs' sizes is bounded by the memory plan, which is made of the
  footprint that the exporter has signed with the manifest.
"""

# coverage: every branch

import math
from collections.abc import Mapping, Sequence

MAX_ELEMENTS = 2**27
"""Of one array: half a gigabyte in float32."""
MAX_NODES = 50_000
"""More take an engine minutes to read."""
MAX_KNOWN = 64
"""The most numbers of a constant that are kept: shapes are shorter."""

_LARGEST = frozenset(
    {
        *("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"),
        *("LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
    }
)
"""Broadcast: as large as the largest of what they read."""
_SAME = frozenset(
    {
        *("Abs", "BitwiseNot", "Cast", "Ceil", "Clip", "Cos", "CumSum", "DepthToSpace", "Elu", "Erf", "Exp", "Flatten"),
        *("Floor", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "LogSoftmax", "Neg"),
        *("Not", "Reciprocal", "Relu", "Reshape", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus"),
        *("SpaceToDepth", "Sqrt", "Squeeze", "Tanh", "Transpose", "Trilu", "Unsqueeze", "ScatterElements", "ScatterND"),
    }
)
"""As large as the first that they read."""


_PASSED_ON = {"Concat": None, "Identity": 1, "Cast": 1, "Reshape": 1, "Squeeze": 1, "Unsqueeze": 1}
"""Operators whose numbers are those of what they read, and of how many of it; None is all."""


class TooLarge(ValueError):
    """A graph has more nodes, or an array more elements, than any that a bundle has."""


class GraphSize:
    """The arrays of a graph, node by node in its order. Methods raise TooLarge."""

    def __init__(self) -> None:
        self._elements: dict[str, int] = {}
        self._values: dict[str, Sequence[float]] = {}
        self._nodes = 0

    def constant(self, name: str, elements: int, values: Sequence[float] | None) -> None:
        """Take a constant in; `values` are its numbers, where they are few and whole."""
        self._elements[name] = elements
        if values is not None and len(values) <= MAX_KNOWN:
            self._values[name] = values

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Take a node in."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise TooLarge(f"it has more than {MAX_NODES} nodes")
        elements = self._of(operator, inputs)
        if elements > MAX_ELEMENTS:
            raise TooLarge(
                f"{operator} makes an array of at least {elements:.3g} elements, and {MAX_ELEMENTS} are allowed"
            )
        if operator in _PASSED_ON and inputs and all(name in self._values for name in inputs[: _PASSED_ON[operator]]):
            joined = [number for name in inputs[: _PASSED_ON[operator]] for number in self._values[name]]
            self._values.update(dict.fromkeys(outputs, joined[:MAX_KNOWN]))
        self._elements.update(dict.fromkeys(outputs, elements))

    def _of(self, operator: str, inputs: Sequence[str]) -> int:
        sizes = [self._elements.get(name, 1) for name in inputs] or [1]
        known: list[Sequence[float] | None] = [self._values.get(name) for name in inputs]
        if operator == "Concat":
            return sum(sizes)
        if operator in _LARGEST:
            return max(sizes)
        if operator in _SAME:
            return sizes[0]
        return _by_numbers(operator, sizes, dict(enumerate(known)))


def _by_numbers(operator: str, sizes: Sequence[int], known: Mapping[int, Sequence[float] | None]) -> int:
    """Return the elements of what an operator makes as large as numbers say; 1 where these are not known."""
    if operator == "Range":
        return _steps(known.get(0), known.get(1), known.get(2))
    place = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "OneHot": 1, "Resize": 3}.get(operator)
    numbers = None if place is None else known.get(place)
    if numbers is None:
        return 1
    product = math.prod(max(0, int(number)) for number in numbers)
    if operator in {"Tile", "OneHot"}:
        return sizes[0] * product
    return max(sizes[0], product) if operator == "Expand" else product


def _steps(start: Sequence[float] | None, end: Sequence[float] | None, step: Sequence[float] | None) -> int:
    if not start or not end or not step or not step[0]:
        return 1
    return max(0, math.ceil((end[0] - start[0]) / step[0]))
