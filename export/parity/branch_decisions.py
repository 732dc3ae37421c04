"""What an operator decides by: values whose rounding makes its result jump.

On which side of a kink an activation is, which of several values is the largest, to which integer one is rounded: of
millions of values some are so close to the border that two correct programs decide otherwise, and gradients differ by a
jump that says nothing of either. Here is which of an operator's arguments decide, and how a graph is made to tell them.
"""

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import fx

from export.model_part import Lowered
from export.onnx_graph import ELEMENT
from export.trace import TraceStep

aten = torch.ops.aten
DECIDES: Mapping[Any, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            *(aten.threshold_backward.default, aten.hardtanh_backward.default, aten.leaky_relu_backward.default),
            *(aten.hardswish_backward.default, aten.hardsigmoid_backward.default),
        ),
        (1,),
    ),
    **dict.fromkeys(
        (
            *(aten.sign.default, aten.sgn.default, aten.floor.default, aten.ceil.default, aten.round.default),
            *(aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default),
            *(aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default, aten.remainder.Scalar),
        ),
        (0,),
    ),
    **dict.fromkeys(
        (
            *(aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar),
            *(aten.eq.Tensor, aten.ne.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor),
            aten.remainder.Tensor,
        ),
        (0, 1),
    ),
}
"""The places of the arguments that decide, by operator. One that is missing here makes the parity check stricter."""


def deciding(step: TraceStep) -> dict[int, fx.Node]:
    """The arguments that an operator decides by, by their places."""
    places = DECIDES.get(step.target, ())
    return {i: step.args[i] for i in places if i < len(step.args) and isinstance(step.args[i], fx.Node)}


def decisions(graph: Lowered) -> dict[fx.Node, str]:
    """What a graph computes and decides by, and what it calls that."""
    given = {step.node for step in graph.trace.inputs} | {node for node, _ in graph.trace.constants}
    names = graph.translation.names
    return {node: names[node] for step in graph.trace.steps for node in deciding(step).values() if node not in given}


def telling(data: bytes, told: Mapping[fx.Node, str]) -> bytes:
    """An ONNX graph that puts out also what it decides by."""
    model = onnx.load_from_string(data)
    made = {name for node in model.graph.node for name in node.output}
    for node, name in told.items():
        if name in made and name not in {output.name for output in model.graph.output}:
            element = ELEMENT[node.meta["val"].dtype]
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
    whole: bytes = model.SerializeToString(deterministic=True)
    return whole
