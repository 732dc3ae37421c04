"""What follows of a node's outputs: their shapes, and their numbers where they are few, as shapes in graphs are.

Rules
- What does not follow is None, and so is all that follows from it. Nothing is guessed.
- An operator's rule is in the table of its kind; of an operator without a rule nothing is known.
"""

# coverage: every branch

import math
from collections.abc import Callable, Mapping, Sequence

from edge_runtime.wire.graph_node import MAX_NUMBERS, KnownArray, Node, Unknown
from edge_runtime.wire.graph_shapes import SHAPES, range_shape, shape_part, slices


def outputs_of(node: Node) -> list[KnownArray | None]:
    """Return what an operator makes; None for what is not known."""
    unknown: list[KnownArray | None] = [None] * node.outputs
    rule = SHAPES.get(node.operator)
    if rule is None:
        return unknown
    try:
        shapes = [tuple(shape) for shape in rule(node)]
    except (Unknown, IndexError, ValueError, ZeroDivisionError, OverflowError):
        return unknown
    if any(size < 0 for shape in shapes for size in shape):
        return unknown
    made: list[KnownArray | None] = [KnownArray(shape) for shape in shapes[: node.outputs]]
    if made and (first := made[0]) is not None and first.elements <= MAX_NUMBERS:
        made[0] = KnownArray(first.shape, _numbers(node, first.elements))
    return made + unknown[len(made) :]


def _numbers(node: Node, elements: int) -> tuple[float, ...] | None:
    """Return the numbers of what a node makes, where they follow."""
    rule = _COMPUTED.get(node.operator)
    try:
        found = None if rule is None else tuple(rule(node))
    except (Unknown, IndexError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return found if found is not None and len(found) == elements else None


def _each(of: Callable[[float, float], float]) -> Callable[[Node], Sequence[float]]:
    """Return a rule for an operator on two rows of numbers, one of which may be a single number."""

    def rule(node: Node) -> list[float]:
        a, b = node.numbers(0), node.numbers(1)
        size = max(len(a), len(b))
        return [of(*pair) for pair in zip(a * (size // len(a)), b * (size // len(b)), strict=True)]

    return rule


def _quotient(a: float, b: float) -> float:
    """Divide as ONNX divides integers: towards zero."""
    return int(a / b) if isinstance(a, int) and isinstance(b, int) else a / b


def _picked(node: Node) -> list[float]:
    numbers = node.numbers(0)
    return [numbers[index] for index in node.integers(1)]


def _joined(node: Node) -> list[float]:
    return [number for place in range(len(node.inputs)) for number in node.numbers(place)]


def _cut(node: Node) -> tuple[float, ...]:
    (part,) = slices(node).values()
    return node.numbers(0)[part]


def _counted(node: Node) -> list[float]:
    (start,), _, (step,) = (node.numbers(place) for place in range(3))
    (count,) = range_shape(node)[0]
    return [start + step * at for at in range(count)]


_COMPUTED: Mapping[str, Callable[[Node], Sequence[float]]] = {
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), lambda node: node.numbers(0)),
    "Add": _each(lambda a, b: a + b),
    "Concat": _joined,
    "Div": _each(_quotient),
    "Gather": _picked,
    "Max": _each(max),
    "Min": _each(min),
    "Mul": _each(lambda a, b: a * b),
    "Range": _counted,
    "ReduceProd": lambda node: [math.prod(node.numbers(0))],
    "Shape": lambda node: node.shape()[shape_part(node)],
    "Size": lambda node: [node.value(0).elements],
    "Slice": _cut,
    "Sub": _each(lambda a, b: a - b),
}
