"""Graphs that are refused before any engine reads them, written here byte by byte: a board has no onnx package."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.operators import (
    MAX_GRAPH_BYTES,
    MAX_NODES,
    OPSET,
    ORT_TRAINING,
    PORTABLE,
    check_graph,
    check_graph_file,
)

GRAPHS = sorted((Path(__file__).parents[2] / "fixtures" / "bundle" / "graphs").iterdir())


def number(value):
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def message(*pairs):
    """Fields by their numbers: an int is a varint, a float 4 bytes, text and bytes have a length before them."""
    found = b""
    for place, value in pairs:
        if isinstance(value, int):
            found += number(place << 3) + number(value % 2**64)
        elif isinstance(value, float):
            found += number(place << 3 | 5) + struct.pack("<f", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            found += number(place << 3 | 2) + number(len(data)) + data
    return found


def double(place, value):
    return number(place << 3 | 1) + struct.pack("<d", value)


def node(operator, *more, domain=""):
    return message((1, "x"), (2, "y"), (4, operator), *([(7, domain)] if domain else []), *more)


def described(name, *shape, kind=1):
    """An input: a dimension is a number or a text."""
    dimensions = [(1, message((1 if isinstance(size, int) else 2, size))) for size in shape]
    return message((1, name), (2, message((1, message((1, kind), (2, message(*dimensions)))))))


def graph(*pairs):
    return message((2, "mas-edge"), *pairs, (11, described("x", 1)), (12, message((1, "y"))))


def model(*nodes, constants=(), opset=OPSET, more=(), inner=()):
    whole = graph(*((1, n) for n in nodes), *((5, c) for c in constants), *inner)
    return message((1, 9), (2, "mas-edge"), (7, whole), (8, message((2, opset))), *more)


def constant(*pairs, shape=(2,), kind=1):
    return message(*((1, dim) for dim in shape), (2, kind), (8, "c"), *pairs)


@pytest.mark.parametrize("path", GRAPHS, ids=[path.stem for path in GRAPHS])
def test_graph_of_a_bundle_is_allowed(path):
    check_graph_file(path, path.stem)


CONSTANTS = {
    "raw": constant((9, bytes(8))),
    "raw_integers": constant((9, bytes(48)), shape=(3, 2), kind=7),
    "raw_truth": constant((9, b"\x01\x00"), kind=9),
    "numbers": constant((4, 1.0), (4, 2.0)),
    "packed_numbers": constant((4, bytes(8))),
    "integers": constant((7, 5), (7, -1), kind=7),
    "packed_integers": constant((7, number(300) + number(2)), kind=7),
    "truth_as_integers": constant((5, 1), (5, 0), kind=9),
    "doubles": constant(kind=11) + double(10, 1.0) + double(10, 2.0),
    "scalar": constant((9, bytes(4)), shape=()),
    "empty": constant(shape=(0,)),
    "shape_packed": message((1, number(2) + number(3)), (2, 1), (9, bytes(24))),
    "location_said": constant((9, bytes(8)), (14, 0)),
}


NUMBERS = {
    "raw_integers": (0,) * 6,
    "numbers": (1.0, 2.0),
    "packed_numbers": (0.0, 0.0),
    "integers": (5, -1),
    "packed_integers": (300, 2),
    "truth_as_integers": None,
    "doubles": None,
    "scalar": (0.0,),
    "empty": (),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_a_constant_are_read_where_they_may_say_how_large_something_is(case):
    read = check_graph(model(constants=[CONSTANTS[case]]), "g").constants["c"]
    assert read.numbers == NUMBERS[case]
    assert read.shape == {"raw_integers": (3, 2), "scalar": (), "empty": (0,)}.get(case, (2,))


def test_numbers_of_a_large_constant_are_left():
    many = [constant((9, bytes(4 * 65)), shape=(65,)), constant(*[(7, 1)] * 65, shape=(65,), kind=7)]
    for each in many:
        assert check_graph(model(constants=[each]), "g").constants["c"].numbers is None


def test_graph_says_its_inputs_what_it_makes_and_the_attributes_of_its_nodes():
    kinds = [message((1, "axis"), (3, -1)), message((1, "mode"), (4, "edge")), message((1, "pads"), (8, 1), (8, -2))]
    kinds += [message((1, "scales"), (7, 1.0))]
    inputs = [described("a", "batch_1", 3), described("i", 2, kind=7), message((1, "any")), described("c", 2)]
    data = model(
        node("Pad", *((5, kind) for kind in kinds)), constants=[CONSTANTS["raw"]], inner=[(11, i) for i in inputs]
    )
    found = check_graph(data, "g")
    assert found.inputs == {"x": (1,), "a": ("batch_1", 3), "i": (2,), "any": None}  # c is a constant
    assert found.wide == {"i"}
    assert found.outputs == ["y"]
    (step,) = found.steps
    assert (step.operator, step.inputs, step.outputs) == ("Pad", ["x"], ["y"])
    assert step.attributes == {"axis": -1, "mode": "edge", "pads": (1, -2)}


def test_constant_in_a_node_is_one_of_the_graph():
    made = message(
        (2, "k"), (4, "Constant"), (5, message((1, "value"), (5, constant((7, 4), (7, 5), kind=7)), (20, 4)))
    )
    found = check_graph(model(made, message((2, "y"), (4, "Constant"))), "g")
    assert found.constants["k"].numbers == (4, 5)
    assert found.wide == {"k"}
    assert [step.operator for step in found.steps] == ["Constant"]  # without a constant it makes nothing that is known


def test_graph_of_too_many_nodes_is_refused():
    with pytest.raises(BundleInvalid, match=f"graph g is refused: it has more than {MAX_NODES} nodes"):
        check_graph(model(*[node("Identity")] * (MAX_NODES + 1)), "g")


@pytest.mark.parametrize("case", CONSTANTS)
def test_constant_of_the_length_of_its_shape_is_allowed(case):
    check_graph(model(node("Add"), constants=[CONSTANTS[case]]), "g")


def test_node_with_attributes_of_all_kinds_is_allowed():
    kinds = [
        message((1, "alpha"), (2, 0.5), (20, 1)),
        message((1, "axis"), (3, -1), (20, 2)),
        message((1, "mode"), (4, "edge"), (20, 3)),
        message((1, "value"), (5, constant((9, bytes(8)))), (20, 4)),
        message((1, "scales"), (7, 1.0), (7, 2.0), (20, 6)),
        message((1, "pads"), (8, 1), (8, 2), (20, 7)),
        message((1, "names"), (9, "a"), (9, "b"), (13, "documented"), (20, 8)),
    ]
    more = [(3, "named"), (6, "documented"), *((5, kind) for kind in kinds)]
    check_graph(model(node("Pad", *more), more=[(3, "1"), (4, "d"), (5, 1), (6, "d")], inner=[(10, "d")]), "g")


def test_official_operator_is_allowed_where_official_models_are():
    data = model(node("ConvGrad", domain="com.microsoft"), more=[(8, message((1, "com.microsoft"), (2, 1)))])
    check_graph(data, "g", ORT_TRAINING)
    with pytest.raises(BundleInvalid, match="graph g is refused: operator 'com.microsoft.ConvGrad' is not one"):
        check_graph(data, "g")


def attribute(*pairs):
    return model(node("Conv", (5, message((1, "a"), *pairs))))


def scan(*bodies):
    return model(node("Scan", *((5, message((1, "body"), (6, body))) for body in bodies)))


def test_scan_has_a_graph_that_is_checked():
    check_graph(scan(graph((1, node("Add")), (5, constant((9, bytes(8)))))), "g")


REFUSED = {
    "operator": (model(node("Add"), node("Evil")), "operator 'Evil' is not one that a bundle may have"),
    "control_flow": (model(node("If")), "operator 'If'"),
    "operator_missing": (model(message((1, "x"))), "operator ''"),
    "operator_of_python": (model(node("PythonOp", domain="com.microsoft")), "operator 'com.microsoft.PythonOp'"),
    "operator_of_another_domain": (model(node("Add", domain="evil")), "operator 'evil.Add'"),
    "operator_that_cannot_be_printed": (model(node("\n\x1b[2J")), r"operator '\\n\\x1b\[2J'"),
    "operator_twice": (model(node("Add", (4, "Evil"))), "a node has field 4 twice"),
    "overload": (model(node("Add", (8, "o"))), "a node has an overload"),
    "graph_in_a_node": (attribute((6, graph())), "a node of Conv has 1 graphs of its own"),
    "scan_without_a_graph": (model(node("Scan")), "a node of Scan has 0 graphs of its own"),
    "scan_with_two": (scan(graph(), graph()), "a node of Scan has 2 graphs of its own"),
    "scan_with_two_in_one": (model(node("Scan", (5, message((6, graph()), (6, graph()))))), "has field 6 twice"),
    "scan_of_control_flow": (scan(graph((1, node("If")))), "operator 'If'"),
    "scan_in_a_scan": (scan(graph((1, node("Scan", (5, message((6, graph()))))))), "operator 'Scan'"),
    "scan_of_external": (scan(graph((5, constant((14, 1))))), "its content in another file"),
    "graphs_in_a_node": (attribute((11, graph())), "an attribute has graphs of its own"),
    "input_of_another_type": (
        model(inner=[(11, message((2, message((4, b"")))))]),
        "an input's type has field 4",
    ),
    "reference": (attribute((21, "r")), "an attribute has a reference"),
    "sparse_attribute": (attribute((22, b"")), "an attribute has a sparse constant"),
    "attribute_of_tomorrow": (attribute((99, 1)), "field 99 of wire type 0, which this software does not know"),
    "attribute_of_another_type": (attribute((3, b"abc")), "an attribute has field 3 of wire type 2"),
    "functions": (model(node("Add"), more=[(25, b"")]), "the model has functions of its own"),
    "training_information": (model(node("Add"), more=[(20, b"")]), "the model has training information"),
    "settings": (model(node("Add"), more=[(14, b"")]), "the model has settings for the engine"),
    "graph_twice": (model(more=[(7, graph((1, node("Evil"))))]), "the model has field 7 twice"),
    "no_graph": (message((1, 9), (8, message((2, OPSET)))), "it has no graph"),
    "nothing": (b"", "it has no graph"),
    "opset_missing": (message((7, graph())), f"written for opset none, and this software runs {OPSET}"),
    "opset_of_tomorrow": (model(opset=99), "written for opset 99"),
    "opset_twice": (model(more=[(8, message((2, OPSET)))]), "opset of domain '' twice"),
    "quantisation": (model(inner=[(14, b"")]), "the graph has quantisation"),
    "sparse": (model(inner=[(15, b"")]), "the graph has sparse constants"),
    "external": (model(constants=[constant((13, message((1, "location"), (2, "/etc/passwd"))))]), "in another file"),
    "external_without_a_name": (model(constants=[constant((9, bytes(8)), (14, 1))]), "its content in another file"),
    "external_in_an_attribute": (attribute((5, constant((14, 1)))), "its content in another file"),
    "segment": (model(constants=[constant((3, b""))]), "a constant has a part of one"),
    "type_of_text": (model(constants=[constant((6, b"text"), kind=8)]), "a constant has field 6"),
    "type_unknown": (model(constants=[constant((9, bytes(4)), kind=10)]), "a constant has data type 10"),
    "type_missing": (model(constants=[message((1, 2), (9, bytes(8)))]), "a constant has data type 0"),
    "too_short": (model(constants=[constant((9, bytes(7)))]), "a constant of 2 elements has a content of another"),
    "too_long": (model(constants=[constant((9, bytes(12)))]), "a constant of 2 elements has a content of another"),
    "too_few": (model(constants=[constant((4, 1.0))]), "a constant of 2 elements has a content of another"),
    "twice": (model(constants=[constant((9, bytes(8)), (4, bytes(8)))]), "a content of another length"),
    "of_another_type": (model(constants=[constant((7, 1), (7, 2))]), "a content of another length"),
    "part_of_a_number": (model(constants=[constant((4, bytes(6)))]), "a part of a number"),
    "huge": (model(constants=[constant(shape=(2**30,) * 3)]), f"a constant of {2**90} elements"),
    "negative": (model(constants=[constant(shape=(-1,))]), "too large"),
    "dimensions": (model(constants=[constant((9, bytes(4)), shape=(1,) * 17)]), "too many dimensions"),
    "not_text": (model(node(b"\xff\xfe")), "is not an ONNX graph: 'utf-8' codec"),
    "length_of_an_exabyte": (
        b"\x3a" + number(2**60),
        "field 7 at byte 0 has 1152921504606846976",
    ),
    "group": (b"\x3b", "is not an ONNX graph: wire type 3"),
    "text": (b"not a graph", "is not an ONNX graph"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_graph_that_a_bundle_may_not_have_is_refused_in_one_sentence(case):
    data, text = REFUSED[case]
    with pytest.raises(BundleInvalid, match=text) as caught:
        check_graph(data, "encoder.forward", ORT_TRAINING)
    sentence = str(caught.value)
    assert sentence.startswith("graph encoder.forward is ")
    assert sentence.isprintable()
    assert len(sentence) < 350


def test_graph_over_its_cap_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "graph"
    path.touch()
    os.truncate(path, MAX_GRAPH_BYTES + 1)
    with pytest.raises(BundleInvalid, match="graph g is refused: 268435457 bytes are over the 268435456 allowed"):
        check_graph_file(path, "g")
    with pytest.raises(BundleInvalid, match="bytes are over"):
        check_graph(bytes(MAX_GRAPH_BYTES + 1), "g")


def test_graph_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BundleInvalid, match="graph g cannot be read: No such file"):
        check_graph_file(tmp_path / "absent", "g")


def test_every_prefix_of_a_graph_is_refused():
    data = GRAPHS[0].read_bytes()
    for end in range(len(data)):
        with pytest.raises(BundleInvalid):
            check_graph(data[:end], "g")


SMALL = min((path.read_bytes() for path in GRAPHS), key=len)


@st.composite
def altered(draw):
    data = bytearray(SMALL)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(st.binary(max_size=8))
    return bytes(data)


@given(altered())
def test_altered_graph_is_allowed_or_bundle_invalid(data):
    try:
        check_graph(data, "g")
    except BundleInvalid as exc:
        assert str(exc).isprintable()


@given(st.binary(max_size=300))
def test_random_bytes_are_bundle_invalid(data):
    with pytest.raises(BundleInvalid):
        check_graph(data, "g")


@pytest.mark.workstation
@given(altered())
def test_altered_graph_that_is_allowed_is_the_same_to_another_reader(data):
    """Whatever passes has, in ONNX's own reader too, the allowed operators alone and all of its content inside.

    Descriptions of types are not checked here: a graph with one that cannot be read is refused by the engine.
    """
    onnx = pytest.importorskip("onnx")
    unreadable = pytest.importorskip("google.protobuf.message").DecodeError
    try:
        check_graph(data, "g")
    except BundleInvalid:
        return
    try:
        found = onnx.load_from_string(data)
    except unreadable:
        return
    assert not found.functions
    assert not found.metadata_props
    for each in found.graph.node:
        assert each.op_type in PORTABLE[each.domain]
        assert not any(a.HasField("g") or a.graphs for a in each.attribute)
    for each in found.graph.initializer:
        assert not each.external_data
        assert each.data_location == onnx.TensorProto.DEFAULT


def test_allowed_operators_have_no_control_flow_sequences_or_chance():
    named = frozenset().union(*ORT_TRAINING.values())
    assert [name for name in named if "Scan" in name] == ["Scan"]  # whose graph is checked
    for part in ("If", "Loop", "Sequence", "Optional", "String", "Random", "Bernoulli", "Python", "ATen"):
        assert not [name for name in named if part in name]
