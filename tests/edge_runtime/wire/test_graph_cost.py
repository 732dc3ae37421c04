"""Graphs of a few bytes that ask for more than any board has, and what graphs take."""

import struct
from importlib import util
from pathlib import Path

import pytest

from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_cost import MAX_ELEMENTS, MAX_OPERATIONS, STEP_OPERATIONS, GraphContent, Step, graph_cost
from edge_runtime.wire.graph_node import KnownArray
from edge_runtime.wire.operators import check_graph

_spec = util.spec_from_file_location("operators_by_bytes", Path(__file__).with_name("test_operators.py"))
written = util.module_from_spec(_spec)
_spec.loader.exec_module(written)


def integers(name, *values):
    """A constant of 64-bit integers."""
    return written.message((1, len(values)), (2, 7), (8, name), (9, struct.pack(f"<{len(values)}q", *values)))


def node(operator, inputs, output, *more):
    return written.message(*((1, each) for each in inputs), (2, output), (4, operator), *more)


HUGE = (4, 2**30)
BOMBS = {
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], "y")], [integers("s", *HUGE)]),
    "Expand": ([node("Expand", ["x", "s"], "y")], [integers("s", *HUGE)]),
    "Tile": ([node("Tile", ["x", "s"], "y")], [integers("s", 2**32)]),
    "Resize": ([node("Resize", ["x", "", "", "s"], "y")], [integers("s", 2**32)]),
    "OneHot": ([node("OneHot", ["x", "s", "v"], "y")], [integers("s", 2**40), integers("v", 0, 1)]),
    "Range": ([node("Range", ["a", "s", "b"], "y")], [integers("a", 0), integers("s", 2**40), integers("b", 1)]),
    "Concat": ([node("Concat", [f"c{at}" if at else "x"] * 2, f"c{at + 1}") for at in range(40)], []),
    "Pad": ([node("Pad", ["x", "p"], "y")], [integers("p", 2**30, 2**30)]),
    "by way of others": (
        [
            node("Concat", ["a", "a"], "s"),
            node("Identity", ["s"], "t"),
            node("Unsqueeze", ["t", "zero"], "u"),
            node("Squeeze", ["u"], "v"),
            node("ConstantOfShape", ["v"], "c"),
            node("Transpose", ["c"], "d"),
            node("Add", ["x", "d"], "y"),
        ],
        [integers("a", 2**16), integers("zero", 0)],
    ),
    "by the size of an input": (
        [node("Shape", ["x"], "s"), node("Mul", ["s", "k"], "t"), node("ConstantOfShape", ["t"], "y")],
        [integers("k", 2**28)],
    ),
    "in a node": (
        [
            node("Constant", [], "s", (5, written.message((1, "value"), (5, integers("", *HUGE)), (20, 4)))),
            node("Expand", ["x", "s"], "y"),
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_graph_of_a_few_bytes_that_asks_for_gigabytes_is_refused(name):
    nodes, constants = BOMBS[name]
    data = written.model(*nodes, constants=constants)
    assert len(data) < 3000
    with pytest.raises(BundleInvalid, match=r"g is refused: \w+ makes an array of .* elements, and 134217728 are"):
        graph_cost(check_graph(data, "g"), "g")


def test_numbers_of_a_constant_are_read_however_they_are_written():
    """As raw bytes, and as numbers with a sign: the same shape is refused, and a dimension below 0 is none."""
    for values in ((7, 2**31), (7, 2**10), (7, 2**20)), ((7, -1), (7, 2**30), (7, 2**30)):
        shape = written.message((1, len(values)), (2, 7), (8, "s"), *values)
        graph = check_graph(written.model(node("ConstantOfShape", ["s"], "y"), constants=[shape]), "g")
        if values[0][1] < 0:
            assert graph_cost(graph, "g").unknown == ("ConstantOfShape",)
        else:
            with pytest.raises(BundleInvalid, match="ConstantOfShape makes an array"):
                graph_cost(graph, "g")


def graph(*steps, outputs=("y",), inputs=None, constants=(), wide=()):
    made = [Step(operator, attributes, read.split(), made.split()) for operator, attributes, read, made in steps]
    given = {"x": ("batch_1", 100)} if inputs is None else inputs
    return GraphContent(inputs=given, constants=dict(constants), wide=wide, steps=made, outputs=outputs)


def test_arrays_are_counted_until_their_last_use():
    chain = graph(("Relu", {}, "x", "a"), ("Exp", {}, "a", "b"), ("Add", {}, "a b", "c"), ("Neg", {}, "c", "y"))
    assert graph_cost(chain, "g", 2).peak_bytes == 3 * 4 * 200  # a, b and c
    assert graph_cost(chain, "g", 2).output_bytes == {"y": 800}
    assert graph_cost(chain, "g", 2).outputs == {"y": (2, 100)}
    assert graph_cost(graph(("Relu", {}, "x", "y"), ("Exp", {}, "x", "unread")), "g").peak_bytes == 800
    left_out = GraphContent(
        inputs={"x": (9,)}, constants={}, wide=(), steps=[Step("Relu", {}, ["x"], [""])], outputs=()
    )
    assert graph_cost(left_out, "g").peak_bytes == 0


def test_view_takes_nothing_and_keeps_what_it_shows():
    shown = graph(
        ("Exp", {}, "x", "a"),
        ("Reshape", {}, "a s", "b"),
        ("Exp", {}, "b", "c"),
        ("Add", {}, "b c", "y"),
        constants={"s": KnownArray((2,), (-1, 10))},
    )
    assert graph_cost(shown, "g").peak_bytes == 3 * 400
    assert graph_cost(graph(("Identity", {}, "x", "y")), "g").peak_bytes == 0
    assert graph_cost(graph(("Identity", {}, "", "y")), "g").unknown == ("Identity",)


@pytest.mark.parametrize(
    ("step", "each"),
    [
        (("Cast", {"to": 7}, "x", "y"), 8),
        (("Cast", {"to": 1}, "i", "y"), 4),
        (("Exp", {}, "i", "y"), 8),
        (("ArgMax", {}, "x", "y"), 8),
        (("Where", {}, "i x x", "y"), 4),
        (("Range", {}, "", "y"), 4),
    ],
)
def test_elements_are_as_wide_as_their_type(step, each):
    found = graph_cost(graph(step, inputs={"x": (1, 100), "i": (1, 100)}, wide={"i"}), "g")
    elements = found.outputs["y"][0] * found.outputs["y"][1] if "y" in found.outputs else 0
    assert found.peak_bytes == each * elements


def test_what_does_not_follow_is_named_and_all_that_follows_of_it():
    found = graph_cost(
        graph(
            ("Expand", {}, "x s", "a"),
            ("Relu", {}, "a", "b"),
            ("Relu", {}, "x", "c"),
            outputs=("b", "c"),
            inputs={
                "x": ("batch_2", 3),
                "s": ("batch_1",),
                "t": ("rows",),
                "u": None,
                "v": ("batch",),
                "w": ("batch_²",),
            },
        ),
        "g",
        4,
    )
    assert found.unknown == ("input t", "input u", "input w", "Expand", "Relu")
    assert found.inputs == {"x": (8, 3), "s": (4,), "v": (4,)}
    assert found.outputs == {"c": (8, 3)}


def test_limits_are_for_each_sample():
    large = graph(("ConstantOfShape", {}, "s", "y"), constants={"s": KnownArray((1,), (2 * MAX_ELEMENTS,))})
    assert graph_cost(large, "g", 2).outputs == {"y": (2 * MAX_ELEMENTS,)}
    with pytest.raises(BundleInvalid, match="ConstantOfShape makes an array"):
        graph_cost(large, "g", 1)


def test_graph_that_takes_hours_is_refused():
    side = 2**13
    squares = [("MatMul", {}, "a a" if at == 0 else f"y{at} a", f"y{at + 1}") for at in range(4)]
    slow = graph(*squares, inputs={"a": (side, side)}, outputs=("y4",))
    assert side**3 * 2 <= MAX_OPERATIONS < side**3 * 4
    with pytest.raises(BundleInvalid, match=r"graph g is refused: it takes more than 1\.1e\+12 operations"):
        graph_cost(slow, "g")


BODY = GraphContent(
    inputs={"h": None, "r": None},
    constants={},
    wide=(),
    steps=[Step("Add", {}, ["h", "r"], ["n"]), Step("Exp", {}, ["n"], ["w"])],
    outputs=("n", "w"),
)


def scan(*, attributes=None, inputs=("s", "x"), outputs=("last", "all"), body=BODY):
    given = {"num_scan_inputs": 1} if attributes is None else attributes
    step = Step("Scan", given, inputs, outputs, body)
    return GraphContent(
        inputs={"s": ("batch_1", 4), "x": (7, "batch_1", 4), "scalar": ()},
        constants={},
        wide=(),
        steps=[step],
        outputs=outputs,
    )


def test_scan_takes_what_its_graph_does_in_each_step():
    found = graph_cost(scan(), "g", 2)
    assert found.unknown == ()
    assert found.outputs == {"last": (2, 4), "all": (7, 2, 4)}
    assert found.peak_bytes == 4 * (8 + 56)
    inner = 2 * STEP_OPERATIONS + (3 + 2) * 8
    assert found.operations == 7 * inner + STEP_OPERATIONS + 8 + 56 + 8 + 56


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": {}},
        {"attributes": {"num_scan_inputs": 3}},
        {"attributes": {"num_scan_inputs": 0}},
        {"attributes": {"num_scan_inputs": 1, "scan_input_axes": (1,)}},
        {"inputs": ("s", "scalar")},
        {"inputs": ("x",)},
        {"outputs": ("last",)},
    ],
)
def test_scan_of_another_form_is_not_known(changes):
    assert graph_cost(scan(**changes), "g").unknown == ("Scan",)


def test_scan_whose_graph_does_not_follow_is_not_known():
    body = GraphContent(
        inputs=BODY.inputs, constants={}, wide=(), steps=[Step("Tile", {}, ["h", "r"], ["n"])], outputs=("n", "n")
    )
    assert graph_cost(scan(body=body), "g").unknown == ("Tile", "Scan")


def test_scan_s_graph_may_take_more_than_what_is_around_it():
    steps = [
        Step("Add", {}, ["h", "r"], ["n"]),
        Step("Tile", {}, ["n", "k"], ["t"]),
        Step("ReduceMax", {}, ["t"], ["w"]),
    ]
    body = GraphContent(
        inputs=BODY.inputs, constants={"k": KnownArray((2,), (1, 1000))}, wide=(), steps=steps, outputs=("n", "w")
    )
    assert graph_cost(scan(body=body), "g").peak_bytes == 4 * (4 + 4000 + 1)
