"""The memory that a bundle's graphs take on a device: each is run at two micro-batches and its liveness worked out."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edge_runtime.training.engine import GraphObservation
from edge_runtime.wire.footprint import MICRO_BATCHES, Footprint, GraphFootprint
from export.memory.liveness import liveness
from export.signature import Role

Arrays = Mapping[str, NDArray[Any]]
OBSERVED = (2, 3)
"""Micro-batches at which graphs are run: two lines through them give every size."""
FILL = 0.01
"""The value of every number that goes in: memory does not depend on values."""
NUMPY: Mapping[int, type] = {TensorProto.FLOAT: np.float32, TensorProto.INT64: np.int64}


Observe = Callable[[bytes, Sequence[tuple[Arrays, Arrays]]], GraphObservation]
"""Runs a graph with these inputs and outputs, one run after the other; outputs without an array are the engine's."""


def footprint(graphs: Mapping[str, bytes], observe: Observe, spare_bytes: int) -> Footprint:
    """Return the footprint of graphs by name; equal files are run once. `spare_bytes` is the arena's setting.

    Raises ExportError where the engine did not run what its optimised graph says.
    """
    found: dict[str, GraphFootprint] = {}
    for data in graphs.values():
        digest = hashlib.sha256(data).hexdigest()
        if digest not in found:
            found[digest] = graph_footprint(data, observe, spare_bytes)
    return Footprint(graphs=dict(sorted(found.items())))


def graph_footprint(data: bytes, observe: Observe, spare_bytes: int) -> GraphFootprint:
    """Return the footprint of one graph. Its outputs saved.<i> stay in the engine's memory."""
    graph = onnx.load_from_string(data).graph
    runs = []
    for batch in OBSERVED:
        inputs = {value.name: _array(value, batch) for value in graph.input}
        outputs = {value.name: _array(value, batch) for value in graph.output if Role.of(value.name) is not Role.SAVED}
        runs.append((inputs, outputs))
    observed = observe(data, runs)
    optimised = onnx.load_from_string(observed.optimised)
    live = liveness(optimised, OBSERVED, observed.runs)
    return GraphFootprint(
        nodes=len(optimised.graph.node),
        transient_bytes=tuple(live.transient_bytes(batch, spare_bytes) for batch in MICRO_BATCHES),
        held_bytes=live.held_line,
    )


def _array(value: onnx.ValueInfoProto, batch: int) -> NDArray[Any]:
    """Make an array for a graph's input or output; a dimension batch_<k> is k times the micro-batch."""
    kind = value.type.tensor_type
    shape = [
        int(dim.dim_param.removeprefix("batch_")) * batch if dim.dim_param else dim.dim_value for dim in kind.shape.dim
    ]
    dtype = NUMPY[kind.elem_type]
    return np.full(shape, FILL if dtype is np.float32 else 0, dtype)
