"""The values that an ONNX graph decides by, told and given.

export.parity.branch_decisions says what they are and why they matter, by PyTorch's operators. The official training
model was differentiated by onnxruntime-training, so here they are read off the nodes of a graph, whoever made it. To
hold two graphs of the same model to one another, one tells what it decides by, and the other one gets that in place
of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

INPUTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Abs", "Sign"), (0,)),
    **dict.fromkeys(("ReluGrad", "LeakyReluGrad"), (1,)),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Max", "Min"), (0, 1)),
}
"""The inputs of nodes that decide by them, or whose gradients do."""
OUTPUTS: Mapping[str, int] = {"Relu": 0, "LeakyRelu": 0, "MaxPool": 1}
"""The outputs of nodes by which their gradients decide: places of maxima, and what is zero where they are."""
GIVEN = "given."
NEAR = 1e-4
"""Two values are the same but for rounding if they are within this part of the largest number in them."""
MOVED = 1e-3
"""This part of the places of maxima may differ: of two numbers that are the same but for rounding, either is one."""
COMPARED = 4096
"""So many numbers of each array, evenly spread, tell which one is nearest."""

Values = Mapping[str, NDArray[Any]]


def deciding(graph: onnx.GraphProto) -> list[str]:
    """The names of computed values that a graph decides by."""
    found: dict[str, None] = {}
    for node in graph.node:
        found |= dict.fromkeys(node.input[i] for i in INPUTS.get(node.op_type, ()) if i < len(node.input))
        place = OUTPUTS.get(node.op_type, len(node.output))
        found |= dict.fromkeys(node.output[place : place + 1])
    computed = {name for node in graph.node for name in node.output if node.op_type != "Constant"}
    return [name for name in found if name in computed]


def telling(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that puts these values out as well; the engine finds their types."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return copy


def taking(model: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    """A copy whose nodes read these values from inputs, given.<name>, and not from the nodes that compute them."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for node in copy.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = f"{GIVEN}{name}" if name in values else name
    for name, value in values.items():
        element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        copy.graph.input.append(onnx.helper.make_tensor_value_info(f"{GIVEN}{name}", element, value.shape))
    return copy


def given(values: Values) -> dict[str, NDArray[Any]]:
    """Values by the names of the inputs of `taking`."""
    return {f"{GIVEN}{name}": value for name, value in values.items()}


def nudged(values: Values) -> dict[str, NDArray[Any]]:
    """The same values with another last digit, so that every decision is the same: zero stays zero."""
    random = np.random.default_rng(0)

    def digit(value: NDArray[Any]) -> NDArray[Any]:
        if not np.issubdtype(value.dtype, np.floating):
            return value
        step = np.finfo(value.dtype).eps * random.choice((-1, 1), value.shape)
        moved: NDArray[Any] = (value * (1 + step)).astype(value.dtype)
        return moved

    return {name: digit(value) for name, value in values.items()}


def same(value: NDArray[Any], others: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """The one of the other arrays that is this one but for rounding, None if none is."""
    alike = [other for other in others if (other.shape, other.dtype) == (value.shape, value.dtype)]
    if not alike or not value.size:
        return None
    some = slice(None, None, -(-value.size // COMPARED))
    nearest = min(alike, key=lambda other: _apart(value.reshape(-1)[some], other.reshape(-1)[some]))
    return nearest if _apart(value, nearest) <= 1 else None


def _apart(value: NDArray[Any], other: NDArray[Any]) -> float:
    """How far two arrays are apart, in units of what is allowed."""
    if np.issubdtype(value.dtype, np.floating):
        return float(np.abs(value - other).max() / max(NEAR * np.abs(value).max(), np.finfo(np.float32).tiny))
    return float(np.mean(value != other)) / MOVED
