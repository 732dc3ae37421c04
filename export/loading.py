"""Every graph is loaded by the engine before it is compared, and what the engine refuses is named.

An engine's message has numbers of nodes at best. So the shortest beginning of the graph that is refused is looked for,
and the operator and the module are those that its last node was translated from.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping

import onnx

from export.errors import OperatorUnsupported
from export.model_part import Lowered

Load = Callable[[bytes], object]
"""Loads a graph from its bytes; raises if the engine does not take it."""


def check_loading(graphs: Mapping[str, bytes], lowered: Mapping[str, Lowered], load: Load) -> None:
    """Load every graph, each content once. Raises OperatorUnsupported, which names operator and module."""
    for data, name in {data: name for name, data in graphs.items()}.items():
        if (exc := _refused(data, load)) is not None:
            raise _refusal(lowered[name], data, load, str(exc)) from exc


def _refusal(graph: Lowered, data: bytes, load: Load, why: str) -> OperatorUnsupported:
    model = onnx.load_from_string(data)
    count = len(model.graph.node)
    first = bisect_left(range(1, count), True, key=lambda n: _refused(_beginning(model, n), load) is not None)
    operator, module = _origin(graph, model.graph.node[first].output[0])
    return OperatorUnsupported(
        operator, module, f"the engine does not load it ({why}): write it with other operators of torch"
    )


def _beginning(model: onnx.ModelProto, count: int) -> bytes:
    """Return a graph's first nodes, with what the last of them computes as its outputs."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[count:]
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.graph.node[-1].output)
    data: bytes = part.SerializeToString(deterministic=True)
    return data


def _refused(data: bytes, load: Load) -> Exception | None:
    try:
        load(data)
    except Exception as exc:  # noqa: BLE001  # the engine's exceptions share no public base
        return exc
    return None


def _origin(graph: Lowered, value: str) -> tuple[str, str]:
    """Return the operator, and its module, that a node comes from: the first whose result was made after the value."""
    made = _number(value)
    for step in graph.trace.steps:
        if _number(graph.translation.names.get(step.node, "")) >= made:
            return str(step.target), step.module
    return "output", "the model"


def _number(name: str) -> int:
    """Return the place of the node that makes a value, among all of the graph (OnnxGraph.add_many)."""
    found = re.match(r"[a-z]+_(\d+)", name)
    return int(found[1]) if found else -1
