"""Graphs of a few bytes that ask for more than any board has."""

import struct
from importlib import util
from pathlib import Path

import pytest

from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_size import MAX_ELEMENTS, MAX_NODES, GraphSize, TooLarge
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
    "Tile": ([node("Tile", ["x", "s"], "y")], [integers("s", *HUGE)]),
    "Resize": ([node("Resize", ["x", "", "", "s"], "y")], [integers("s", *HUGE)]),
    "OneHot": ([node("OneHot", ["x", "s", "v"], "y")], [integers("s", 2**40), integers("v", 0, 1)]),
    "Range": ([node("Range", ["a", "s", "b"], "y")], [integers("a", 0), integers("s", 2**40), integers("b", 1)]),
    "Concat": ([node("Concat", [f"c{at}", f"c{at}"], f"c{at + 1}") for at in range(40)], []),
    "by way of others": (
        [
            node("Concat", ["a", "a"], "s"),
            node("Identity", ["s"], "t"),
            node("Unsqueeze", ["t", "a"], "u"),
            node("ConstantOfShape", ["u"], "c"),
            node("Transpose", ["c"], "d"),
            node("Add", ["x", "d"], "y"),
        ],
        [integers("a", 2**16)],
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
    assert len(data) < 2000
    with pytest.raises(BundleInvalid, match=r"graph g is refused: \w+ makes an array of at least .* elements"):
        check_graph(data, "g")


def test_graph_of_too_many_nodes_is_refused():
    nodes = [node("Identity", ["x"], "y")] * (MAX_NODES + 1)
    with pytest.raises(BundleInvalid, match=f"graph g is refused: it has more than {MAX_NODES} nodes"):
        check_graph(written.model(*nodes), "g")


@pytest.mark.parametrize(
    ("operator", "inputs", "elements"),
    [
        ("Concat", ["a", "a", "x"], 201),
        ("Add", ["x", "a"], 100),
        ("Relu", ["a"], 100),
        ("Relu", [], 1),
        ("MatMul", ["a", "a"], 1),
        ("ConstantOfShape", ["unknown"], 1),
        ("ConstantOfShape", ["s"], 30),
        ("Expand", ["a", "s"], 100),
        ("Expand", ["a", "unknown"], 1),
        ("Tile", ["a", "s"], 3000),
        ("Tile", ["a"], 1),
        ("OneHot", ["a", "s", "v"], 3000),
        ("Resize", ["a", "", "", "s"], 30),
        ("Resize", ["a", "s"], 1),
        ("Range", ["zero", "ten", "three"], 4),
        ("Range", ["ten", "zero", "three"], 0),
        ("Range", ["zero", "ten", "zero"], 1),
        ("Identity", [], 1),
    ],
)
def test_array_is_at_least_as_large_as_follows_from_what_is_known(operator, inputs, elements):
    size = GraphSize()
    size.constant("a", 100, None)
    for name, values in {"s": (5, 6), "zero": (0,), "ten": (10,), "three": (3,), "many": (1,) * 65}.items():
        size.constant(name, len(values), values)
    size.node(operator, inputs, ["y"])
    assert size._elements["y"] == elements


def test_array_that_is_just_small_enough_is_allowed():
    size = GraphSize()
    size.constant("s", 1, (MAX_ELEMENTS,))
    size.node("ConstantOfShape", ["s"], ["y"])
    size.constant("t", 1, (MAX_ELEMENTS + 1,))
    with pytest.raises(TooLarge):
        size.node("ConstantOfShape", ["t"], ["z"])


def test_numbers_of_a_constant_are_read_however_they_are_written():
    """As raw bytes, and as numbers with a sign: the same shape is refused, and a dimension below 0 is none."""
    for values in ((7, 2**31), (7, 2**10), (7, 2**20)), ((7, -1), (7, 2**30), (7, 2**30)):
        shape = written.message((1, len(values)), (2, 7), (8, "s"), *values)
        data = written.model(node("ConstantOfShape", ["s"], "y"), constants=[shape])
        if values[0][1] < 0:
            check_graph(data, "g")
        else:
            with pytest.raises(BundleInvalid, match="ConstantOfShape makes an array"):
                check_graph(data, "g")
