"""Which operators the graphs of a bundle may have, and a check of a graph's file before any engine reads it.

Rules
- An operator is allowed by name. All that are compute arrays from arrays; none has code of its own, sequences, strings,
  files or chance. The exporter holds what it writes to the same list.
- Scan alone has a graph of its own, for the steps of a recurrent layer, as many as an array of its inputs has. That
  graph is checked as the others are, and has no Scan in it.
- A graph has no functions and no content in other files, so what is looked at here is all there is.
- A field that no exporter of ours writes is refused, and so is one that is there twice where the format has one: two
  readers might understand it differently. Only descriptions of outputs' types are left to the engine.
- A constant is as large as its shape says. What the nodes take is worked out of what is read here (graph_cost.py).

(The ONNX format: https://github.com/onnx/onnx/blob/v1.17.0/onnx/onnx.proto)
"""

# coverage: every branch

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_runtime.wire.errors import BundleInvalid, reason
from edge_runtime.wire.graph_cost import GraphContent, Step
from edge_runtime.wire.graph_node import MAX_NUMBERS, Attribute, KnownArray
from edge_runtime.wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, ProtobufInvalid, fields, varint

OPSET = 18
MAX_GRAPH_BYTES = 256 * 1024**2
MAX_NODES = 50_000
"""More take an engine minutes to read."""
MAX_DIMENSIONS = 16
MAX_DIMENSION = 2**31

Operators = Mapping[str, frozenset[str]]
"""Names of operators by their domain; ONNX's own is the empty one."""

SCAN = "Scan"
PORTABLE: Operators = {
    "": frozenset(
        {
            *("Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh"),
            *("AveragePool", "BatchNormalization", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast"),
            *("Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh"),
            *("CumSum", "DepthToSpace", "Div", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor"),
            *("Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater"),
            *("GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf"),
            *("IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max"),
            *("MaxPool", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pad", "Pow", "PRelu", "Range"),
            *("Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
            *("ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "Scan", "ScatterElements", "ScatterND", "Selu"),
            "Shape",
            *("Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split"),
            *("Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze"),
            *("Where", "Xor"),
        }
    )
}
"""The operators of graphs that any onnxruntime runs."""

ORT_TRAINING: Operators = {
    **PORTABLE,
    "com.microsoft": frozenset(
        {
            *("ConcatTraining", "ConvGrad", "DivGrad", "FusedMatMul", "GatherElementsGrad", "GatherGrad"),
            *(
                "InPlaceAccumulatorV2",
                "LayerNormalizationGrad",
                "LeakyReluGrad",
                "LogSoftmaxGrad_13",
                "QuickGelu",
                "QuickGeluGrad",
            ),
            *("ReluGrad", "Scale", "SigmoidGrad", "SliceGrad", "SoftmaxGrad_13", "SplitTraining", "TanhGrad"),
        }
    ),
}
"""The operators of training models: those that onnxruntime-training 1.19.2 differentiates the others into too."""


@dataclass(frozen=True)
class _Message:
    """A kind of message: wire types by field number; fields outside `repeated` may be there once."""

    kind: str
    fields: Mapping[int, tuple[int, ...]]
    repeated: frozenset[int]
    refused: Mapping[int, str]


_MODEL = _Message(
    "the model",
    dict.fromkeys((1, 5), (VARINT,)) | dict.fromkeys((2, 3, 4, 6, 7, 8), (BYTES,)),
    frozenset({8}),
    {14: "settings for the engine", 20: "training information", 25: "functions of its own"},
)
_OPSET = _Message("an opset", {1: (BYTES,), 2: (VARINT,)}, frozenset(), {})
_GRAPH = _Message(
    "the graph",
    dict.fromkeys((1, 2, 5, 10, 11, 12, 13), (BYTES,)),
    frozenset({1, 5, 11, 12, 13}),
    {14: "quantisation", 15: "sparse constants"},
)
_VALUE = _Message("an input or output", dict.fromkeys((1, 2, 3), (BYTES,)), frozenset(), {})
_TYPE = _Message("an input's type", {1: (BYTES,), 6: (BYTES,)}, frozenset(), {})
_TENSOR_TYPE = _Message("an input's type", {1: (VARINT,), 2: (BYTES,)}, frozenset(), {})
_SHAPE = _Message("an input's shape", {1: (BYTES,)}, frozenset({1}), {})
_DIMENSION = _Message("an input's dimension", {1: (VARINT,), 2: (BYTES,), 3: (BYTES,)}, frozenset(), {})
_NODE = _Message("a node", dict.fromkeys((1, 2, 3, 4, 5, 6, 7), (BYTES,)), frozenset({1, 2, 5}), {8: "an overload"})
_ATTRIBUTE = _Message(
    "an attribute",
    dict.fromkeys((1, 4, 5, 6, 9, 13), (BYTES,))
    | {2: (FIXED32,), 3: (VARINT,), 7: (FIXED32, BYTES), 8: (VARINT, BYTES), 20: (VARINT,)},
    frozenset({7, 8, 9}),
    {11: "graphs of its own", 21: "a reference", 22: "a sparse constant"},
)
_TENSOR = _Message(
    "a constant",
    {1: (VARINT, BYTES), 2: (VARINT,), 8: (BYTES,), 9: (BYTES,), 12: (BYTES,), 14: (VARINT,)}
    | {4: (FIXED32, BYTES), 5: (VARINT, BYTES), 7: (VARINT, BYTES), 10: (FIXED64, BYTES)},
    frozenset({1, 4, 5, 7, 10}),
    {3: "a part of one", 13: "content in another file"},
)
_DATA_TYPES = {1: (4, 4), 6: (4, 5), 7: (8, 7), 9: (1, 5), 11: (8, 10)}
"""Bytes of an element in raw data, and the field that has the elements otherwise: float, int32, int64, bool, double."""
_FORMS = {1: "f", 6: "i", 7: "q"}
"""The types of constants whose numbers may say how large something is, by their letters for struct."""
_FLOATS = 4
_VARINTS = (5, 7)
_WIDTHS = {4: 4, 10: 8}
"""The fields with elements of a constant: those of any length, and bytes of those of a fixed one."""


def check_graph(data: bytes, name: str, operators: Operators = PORTABLE) -> GraphContent:
    """Return what is in an ONNX file. Raises BundleInvalid, which names the graph, where a bundle may not have that."""
    _check_size(len(data), name)
    try:
        return _model(memoryview(data), operators)
    except _NotAllowed as exc:
        raise BundleInvalid(f"graph {name} is refused: {exc}") from exc
    except (ProtobufInvalid, UnicodeDecodeError) as exc:
        raise BundleInvalid(f"graph {name} is not an ONNX graph: {reason(exc)}") from exc


def check_graph_file(path: Path, name: str, operators: Operators = PORTABLE) -> GraphContent:
    """Check a file as `check_graph` does; it must exist."""
    try:
        _check_size(path.stat().st_size, name)
        data = path.read_bytes()
    except OSError as exc:
        raise BundleInvalid(f"graph {name} cannot be read: {exc.strerror}") from exc
    return check_graph(data, name, operators)


def _check_size(size_bytes: int, name: str) -> None:
    if size_bytes > MAX_GRAPH_BYTES:
        raise BundleInvalid(f"graph {name} is refused: {size_bytes} bytes are over the {MAX_GRAPH_BYTES} allowed")


class _NotAllowed(Exception):
    """A message that can be read, and says what a bundle may not have."""


def _model(data: memoryview, operators: Operators) -> GraphContent:
    graph, versions = None, {}
    for number, value in _read(data, _MODEL):
        if number == 7:
            graph = value
        elif number == 8:
            opset = dict(_read(value, _OPSET))
            domain = _text(opset.get(1, b""))
            if domain in versions:
                raise _NotAllowed(f"the model has the opset of domain {reason(repr(domain))} twice")
            versions[domain] = opset.get(2, 0)
    if graph is None:
        raise _NotAllowed("it has no graph")
    if versions.get("") != OPSET:
        raise _NotAllowed(f"it is written for opset {versions.get('', 'none')}, and this software runs {OPSET}")
    return _parts(graph, operators)


def _parts(graph: memoryview, operators: Operators) -> GraphContent:
    found: dict[int, list[memoryview]] = {1: [], 5: [], 11: [], 12: []}
    for number, value in _read(graph, _GRAPH):
        if number in found:
            found[number].append(value)
    nodes, tensors, described, made = found.values()
    if len(nodes) > MAX_NODES:
        raise _NotAllowed(f"it has more than {MAX_NODES} nodes")
    constants = [_constant(tensor) for tensor in tensors]
    steps = []
    for node in nodes:
        step, constant = _step(node, operators)
        if constant is None:
            steps.append(step)
        else:
            constants += (replace(constant, name=name) for name in step.outputs)
    values = {constant.name: constant.value for constant in constants}
    inputs = [each for each in map(_input, described) if each[0] not in values]
    return GraphContent(
        inputs={name: shape for name, shape, _ in inputs},
        constants=values,
        wide={constant.name for constant in constants if constant.is_wide} | {name for name, _, wide in inputs if wide},
        steps=steps,
        outputs=[_text(dict(_read(output, _VALUE)).get(1, b"")) for output in made],
    )


def _input(data: memoryview) -> tuple[str, tuple[int | str, ...] | None, bool]:
    """Return the name of an input, its shape if it has one, and whether its elements have 8 bytes."""
    described = dict(_read(data, _VALUE))
    tensor = dict(_read(dict(_read(described.get(2, memoryview(b"")), _TYPE)).get(1, memoryview(b"")), _TENSOR_TYPE))
    shape = None
    if 2 in tensor:
        dimensions = (dict(_read(dimension, _DIMENSION)) for _, dimension in _read(tensor[2], _SHAPE))
        shape = tuple(each[1] if 1 in each else _text(each.get(2, b"")) for each in dimensions)
    return _text(described.get(1, b"")), shape, _is_wide(tensor.get(1, 0))


def _step(data: memoryview, operators: Operators) -> tuple[Step, "_Constant | None"]:
    """Return a node, and the constant that it makes, if it is one."""
    operator = domain = ""
    names: dict[int, list[str]] = {1: [], 2: []}
    given: list[_Attribute] = []
    for number, value in _read(data, _NODE):
        if number in names:
            names[number].append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            given.append(_attribute(value))
    _check_operator(operator, domain, operators)
    bodies = [each.body for each in given if each.body is not None]
    if len(bodies) != (operator == SCAN):
        raise _NotAllowed(f"a node of {operator} has {len(bodies)} graphs of its own")
    inner = {domain: allowed - {SCAN} for domain, allowed in operators.items()}
    attributes = {each.name: each.value for each in given if each.value is not None}
    constants = [each.constant for each in given if each.constant is not None]
    step = Step(operator, attributes, names[1], names[2], *(_parts(body, inner) for body in bodies))
    return step, constants[-1] if constants and operator == "Constant" else None


def _check_operator(operator: str, domain: str, operators: Operators) -> None:
    if operator not in operators.get(domain, ()):
        whole = f"{domain}.{operator}" if domain else operator
        raise _NotAllowed(f"operator {reason(repr(whole))} is not one that a bundle may have")


@dataclass(frozen=True)
class _Attribute:
    """An attribute: its value where that is whole or a text, its constant, checked, or its graph, unchecked."""

    name: str
    value: Attribute | None
    constant: "_Constant | None"
    body: memoryview | None


def _attribute(data: memoryview) -> _Attribute:
    name, constant, several = "", None, list[int]()
    found: Attribute | None = None
    body: memoryview | None = None
    for number, value in _read(data, _ATTRIBUTE):
        if number == 1:
            name = _text(value)
        elif number == 3:
            found = _signed(value)
        elif number == 4:
            found = bytes(value).decode(errors="replace")
        elif number == 5:
            constant = _constant(value)
        elif number == 6:
            body = value
        elif number == 8:
            several += (_signed(each) for each in _numbers(value))
            found = tuple(several)
    return _Attribute(name, found, constant, body)


@dataclass(frozen=True)
class _Constant:
    name: str
    value: KnownArray
    is_wide: bool


def _constant(data: memoryview) -> _Constant:
    """Return a constant; refuse one whose content has another length than its shape and type say."""
    name, shape, kind, raw = "", list[int](), 0, memoryview(b"")
    counts, found = dict.fromkeys((*_VARINTS, *_WIDTHS), 0), list[float]()
    for number, value in _read(data, _TENSOR):
        if number == 1:
            shape += _numbers(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number == 14 and value:
            raise _NotAllowed("a constant has its content in another file")
        elif number in counts:
            counts[number] += _count(number, value)
            found += _some(number, value) if len(found) <= MAX_NUMBERS else []
    if kind not in _DATA_TYPES:
        raise _NotAllowed(f"a constant has data type {kind}")
    if len(shape) > MAX_DIMENSIONS or any(dim >= MAX_DIMENSION for dim in shape):
        raise _NotAllowed("a constant has too many dimensions, or too large ones")
    return _Constant(
        name, KnownArray(tuple(shape), _content(kind, math.prod(shape), raw, counts, found)), _is_wide(kind)
    )


def _content(
    kind: int, elements: int, raw: memoryview, counts: Mapping[int, int], found: Sequence[float]
) -> tuple[float, ...] | None:
    """Return the numbers of a constant, where they are few and may say how large something is."""
    width, field = _DATA_TYPES[kind]
    stored = {number: count for number, count in counts.items() if count}
    as_bytes = len(raw) == elements * width and not stored
    if not as_bytes and (raw or stored != {field: elements}):
        raise _NotAllowed(f"a constant of {elements} elements has a content of another length")
    if elements > MAX_NUMBERS or kind not in _FORMS:
        return None
    return struct.unpack(f"<{elements}{_FORMS[kind]}", raw) if as_bytes else tuple(found)


def _some(number: int, value: int | memoryview) -> list[float]:
    """Return the first numbers of a field of a constant that has integers or float32."""
    if number in _VARINTS:
        return [_signed(each) for each in _numbers(value)[: MAX_NUMBERS + 1]]
    assert isinstance(value, memoryview)
    some = value[: 4 * (MAX_NUMBERS + 1)]
    return [*struct.unpack(f"<{len(some) // 4}f", some)] if number == _FLOATS and len(some) % 4 == 0 else []


def _is_wide(kind: int) -> bool:
    """Return whether elements of a type have 8 bytes."""
    return _DATA_TYPES.get(kind, (0, 0))[0] == 8


def _signed(number: int) -> int:
    """Return a number of 64 bits, which a varint has without its sign."""
    return number - 2**64 if number >= 2**63 else number


def _numbers(value: int | memoryview) -> list[int]:
    """Return the numbers of a field that has one, or many of them in a row."""
    if isinstance(value, int):
        return [value]
    found, place = [], 0
    while place < len(value):
        number, place = varint(value, place)
        found.append(number)
    return found


def _count(number: int, value: int | memoryview) -> int:
    """Count the numbers in a field of a constant."""
    if number in _VARINTS:
        return len(_numbers(value))
    assert isinstance(value, memoryview)
    count, rest = divmod(len(value), _WIDTHS[number])
    if rest:
        raise _NotAllowed("a constant has a part of a number")
    return count


def _text(value: bytes | memoryview) -> str:
    return bytes(value).decode()


def _read(data: memoryview, message: _Message) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message after checking each against its kind: an int for VARINT, else bytes."""
    seen = set()
    for number, wire, value in fields(data):
        if wire not in message.fields.get(number, ()):
            unknown = f"field {number} of wire type {wire}, which this software does not know"
            raise _NotAllowed(f"{message.kind} has {message.refused.get(number, unknown)}")
        if number in seen and number not in message.repeated:
            raise _NotAllowed(f"{message.kind} has field {number} twice")
        seen.add(number)
        yield number, value
