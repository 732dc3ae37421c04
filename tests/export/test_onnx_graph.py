import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.onnx_graph import lazily  # noqa: E402

pytestmark = pytest.mark.workstation


def node(output, *inputs):
    return onnx.helper.make_node("Add", inputs, [output])


def test_lazily_puts_last_what_depends_on_what_is_late():
    nodes = [node("a", "x"), node("g", "a", "dz"), node("mask", "a"), node("h", "g", "mask"), node("b", "x")]
    assert [n.output[0] for n in lazily(nodes, ["dz"])] == ["a", "mask", "b", "g", "h"]
    assert lazily(nodes, []) == nodes


def test_backward_pass_makes_a_mask_when_its_gradient_is_there(make, tmp_path):
    """In the order in which the engine runs: of three layers, the first one's mask is made after the last one's."""
    from edge_runtime.training.engine import Engine
    from export.memory.footprint import OBSERVED, _array

    layers = [layer for i in range(3) for layer in (nn.Conv2d(4 if i else 3, 4, 3, padding=1), nn.ReLU6())]
    compiled = compile_model(make(encoder=nn.Sequential(*layers)), stages=1)
    data = compiled.graphs["encoder.0.backward"]
    (tmp_path / "graph.onnx").write_bytes(data)
    graph = onnx.load_from_string(data).graph
    runs = [tuple({v.name: _array(v, n) for v in values} for values in (graph.input, graph.output)) for n in OBSERVED]
    found = onnx.load_from_string(Engine().observe(tmp_path / "graph.onnx", runs).optimised).graph.node
    steps = [i for i, one in enumerate(found) if one.op_type == "HardSigmoid"]
    gradients = {"dz.0"}
    reached = []
    for i, one in enumerate(found):
        if gradients.intersection(one.input):
            gradients.update(one.output)
            reached.append(i)
    assert len(steps) == 3
    assert sum(i > reached[0] for i in steps) == 2  # the last layer's mask is what the gradient meets first
