"""Branch decisions at non-smooth points: values whose rounding makes an operator's result jump.

Such a decision is on which side of a kink of ReLU a value is, which of several values is the largest, or to which
integer one is rounded. Of millions of values some are so close to the border that two correct programs decide
differently, and their gradients differ by a jump that is no error of either. This module knows which arguments of an
operator decide, and adds them to the outputs of a graph.
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
            *(aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default, aten.trunc.default),
            *(aten.sort.default, aten.sort.stable, aten.topk.default, aten.fmod.Scalar),
            *(aten.max_pool3d_with_indices.default, aten.adaptive_max_pool3d.default),
            *(aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default, aten.remainder.Scalar),
        ),
        (0,),
    ),
    **dict.fromkeys(
        (
            *(aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar),
            *(aten.eq.Tensor, aten.ne.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor),
            *(aten.remainder.Tensor, aten.fmod.Tensor, aten.div.Tensor_mode),
        ),
        (0, 1),
    ),
}
"""The places of the arguments that decide, by operator. An operator missing here makes the parity check stricter."""


def deciding_arguments(step: TraceStep) -> dict[int, fx.Node]:
    """Return the arguments that an operator decides by, by their places."""
    places = DECIDES.get(step.target, ())
    return {i: step.args[i] for i in places if i < len(step.args) and isinstance(step.args[i], fx.Node)}


def deciding_values(graph: Lowered) -> dict[fx.Node, str]:
    """Return the computed values that a graph decides by, with their names in the graph."""
    given = {step.node for step in graph.trace.inputs} | {node for node, _ in graph.trace.constants}
    names = graph.translation.names
    return {
        node: names[node]
        for step in graph.trace.steps
        for node in deciding_arguments(step).values()
        if node not in given
    }


def with_outputs(data: bytes, values: Mapping[fx.Node, str]) -> bytes:
    """Return an ONNX graph that has the values it decides by among its outputs."""
    model = onnx.load_from_string(data)
    made = {name for node in model.graph.node for name in node.output}
    for node, name in values.items():
        if name in made and name not in {output.name for output in model.graph.output}:
            element = ELEMENT[node.meta["val"].dtype]
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
    whole: bytes = model.SerializeToString(deterministic=True)
    return whole
