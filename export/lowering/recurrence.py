"""Recurrent layers, forward and back: a Scan, whose body is the step in ordinary ONNX.

The body is traced and translated like any graph. It reads nothing from outside but its inputs: weights come in with the
state and are passed on, so that what looks at a graph's nodes sees all that a Scan reads.
"""

from collections.abc import Callable, Sequence

import onnx
import torch
from torch import Tensor, nn

from export.functions.recurrence import CELLS
from export.lowering.context import Call, Context, Result, RuleBook, Value
from export.trace import Batch, trace

RULES = RuleBook()
FORWARD, BACKWARD = 0, 1
"""The direction in which a Scan goes through what it reads and writes."""

Step = Callable[..., tuple[Tensor, ...]]
"""Maps what is read of this step, the state and what is fixed to the next state and what is written of this step."""


@RULES.rule(torch.ops.mas_edge.recurrence.default)
def recurrence(context: Context, call: Call, cell: str, x: Value, state: Value, *fixed: Value) -> Result:
    """Run a cell over the steps."""

    def step(arrives: Tensor, before: Tensor, *fixed: Tensor) -> tuple[Tensor, Tensor]:
        after = CELLS[cell].forward(arrives, before, *fixed)
        return after, after

    return _scan(context, step, [x], state, fixed, FORWARD)[1]


@RULES.rule(torch.ops.mas_edge.recurrence_backward.default)
def recurrence_backward(
    context: Context, call: Call, cell: str, d: Value, x: Value, before: Value, *fixed: Value
) -> Result:
    """Run a cell's backward pass over the steps, from the last one on.

    Results: the gradients before the gates, and of the first state.
    """

    def step(
        arrives: Tensor, arriving: Tensor, state: Tensor, carried: Tensor, *fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates, following = CELLS[cell].backward(carried + arriving, arrives, state, *fixed)
        return following, gates

    first = call.shapes[1]
    assert first is not None
    zeros = Value(context.filled(first, 0.0, d.dtype), first, d.dtype)
    last, gates = _scan(context, step, [x, d, before], zeros, fixed, BACKWARD)
    return gates, last


def _scan(
    context: Context, step: Step, read: Sequence[Value], state: Value, fixed: Sequence[Value], direction: int
) -> tuple[str, str]:
    """Add a Scan; return the names of its last state and of what it writes in each step.

    The first that it reads has the micro-batch in front, once its steps are taken apart.
    """
    parts = [*(Value(value.name, value.shape[1:], value.dtype) for value in read), state, *fixed]
    batch = parts[0].shape[0]

    def example(size: int) -> list[Tensor]:
        """Take the dimension of the batch, whatever it is a multiple of, as the batch of the body."""
        shapes = [[size if isinstance(dim, Batch) else dim for dim in part.shape] for part in parts]
        return [torch.zeros(shape, dtype=part.dtype) for shape, part in zip(shapes, parts, strict=True)]

    assert all(dim == batch for part in parts for dim in part.shape if isinstance(dim, Batch))
    outer = f"scan_{len(context.graph.nodes)}"
    inputs = [f"{outer}.in_{i}" for i in range(len(parts))]
    outputs = [f"{outer}.state", f"{outer}.written"]
    body = context.lowered(trace(step, example, nn.Module()), inputs=inputs, outputs=outputs).graph
    _rename(body, {*inputs, *outputs}, outer)
    given, (after, written) = list(body.input), list(body.output)
    arriving, (before, *held) = given[: len(read)], given[len(read) :]
    passed = []
    for value in held:
        passed.append(onnx.ValueInfoProto())
        passed[-1].CopyFrom(value)
        passed[-1].name = f"{value.name}.passed"
        body.node.append(onnx.helper.make_node("Identity", [value.name], [passed[-1].name]))
    del body.input[:], body.output[:]
    body.input.extend([before, *held, *arriving])
    body.output.extend([after, *passed, written])
    names = context.graph.add_many(
        "Scan",
        *(part.name for part in parts[len(read) :]),
        *(value.name for value in read),
        outputs=len(fixed) + 2,
        body=body,
        num_scan_inputs=len(read),
        scan_input_directions=[direction] * len(read),
        scan_output_directions=[direction],
    )
    return names[0], names[-1]


def _rename(body: onnx.GraphProto, kept: set[str], outer: str) -> None:
    """Give a body's values names that no graph around it has."""

    def renamed(name: str) -> str:
        return name if name in kept or not name else f"{outer}.{name}"

    body.name = outer
    for node in body.node:
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    for tensor in body.initializer:
        tensor.name = renamed(tensor.name)
