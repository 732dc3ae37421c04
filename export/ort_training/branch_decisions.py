"""Branch decisions of ONNX graphs: the values that they decide by, read out of one graph and put into another.

export.parity.branch_decisions explains what they are and why they matter, for PyTorch's operators. A training model is
differentiated by onnxruntime-training, so here they are found in the nodes of a graph, whoever made it. To compare two
graphs of the same model, the values that one decides by are among its outputs, and replace those of the other.
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
"""The inputs that nodes, or their gradients, decide by."""
OUTPUTS: Mapping[str, int] = {"Relu": 0, "LeakyRelu": 0, "MaxPool": 1}
"""The outputs that the gradients of nodes decide by: places of maxima, and results that are zero or not."""
GIVEN = "given."
NEAR = 1e-4
"""Two arrays are equal but for rounding if they differ by at most this part of the largest number in them."""
MOVED = 1e-3
"""This part of the places of maxima may differ: of two numbers that are equal but for rounding, either is one."""
COMPARED = 4096
"""How many numbers of each array, evenly spread, are compared to find the nearest."""

Values = Mapping[str, NDArray[Any]]


def deciding_values(graph: onnx.GraphProto) -> list[str]:
    """Return the names of computed values that a graph decides by."""
    found: dict[str, None] = {}
    for node in graph.node:
        found |= dict.fromkeys(node.input[i] for i in INPUTS.get(node.op_type, ()) if i < len(node.input))
        place = OUTPUTS.get(node.op_type, len(node.output))
        found |= dict.fromkeys(node.output[place : place + 1])
    computed = {name for node in graph.node for name in node.output if node.op_type != "Constant"}
    return [name for name in found if name in computed]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy with these values among its outputs; the engine finds their types."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return copy


def with_inputs(model: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    """Return a copy whose nodes read these values from inputs, given.<name>, not from the nodes that compute them."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for node in copy.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = f"{GIVEN}{name}" if name in values else name
    for name, value in values.items():
        element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        copy.graph.input.append(onnx.helper.make_tensor_value_info(f"{GIVEN}{name}", element, value.shape))
    return copy


def as_inputs(values: Values) -> dict[str, NDArray[Any]]:
    """Return values by the names of the inputs of `with_inputs`."""
    return {f"{GIVEN}{name}": value for name, value in values.items()}


def with_other_last_digits(values: Values) -> dict[str, NDArray[Any]]:
    """Return the values with another last digit each, so that every decision stays: zero stays zero."""
    random = np.random.default_rng(0)

    def digit(value: NDArray[Any]) -> NDArray[Any]:
        if not np.issubdtype(value.dtype, np.floating):
            return value
        step = np.finfo(value.dtype).eps * random.choice((-1, 1), value.shape)
        moved: NDArray[Any] = (value * (1 + step)).astype(value.dtype)
        return moved

    return {name: digit(value) for name, value in values.items()}


def nearest_equal(value: NDArray[Any], others: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """Return the one of the others that is equal to this array but for rounding, None if none is."""
    alike = [other for other in others if (other.shape, other.dtype) == (value.shape, value.dtype)]
    if not alike or not value.size:
        return None
    some = slice(None, None, -(-value.size // COMPARED))
    nearest = min(alike, key=lambda other: _apart(value.reshape(-1)[some], other.reshape(-1)[some]))
    return nearest if _apart(value, nearest) <= 1 else None


def _apart(value: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the difference of two arrays in units of what is allowed."""
    if np.issubdtype(value.dtype, np.floating):
        return float(np.abs(value - other).max() / max(NEAR * np.abs(value).max(), np.finfo(np.float32).tiny))
    return float(np.mean(value != other)) / MOVED
