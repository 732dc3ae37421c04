"""What the engine does not load is named by operator and module, whatever its own message says."""

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from edge_runtime.training.engine import Engine  # noqa: E402
from export.compile import compile_model  # noqa: E402
from export.errors import OperatorUnsupported  # noqa: E402
from export.loading import check_loading  # noqa: E402
from export.lowering.lower import RULES  # noqa: E402

pytestmark = pytest.mark.workstation


@pytest.fixture
def load(tmp_path):
    engine = Engine()

    def call(graph):
        path = tmp_path / "graph.onnx"
        path.write_bytes(graph)
        return engine.load(path)

    return call


def test_graphs_are_loaded_once_each(make, load):
    loaded = []

    def count(graph):
        loaded.append(graph)
        return load(graph)

    compiled = compile_model(make())
    check_loading(compiled.graphs, compiled.lowered, count)
    assert sorted(loaded) == sorted(set(compiled.graphs.values()))


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@pytest.mark.parametrize(("operator", "where"), [("gelu", "encoder.1"), ("sin", "encoder.2.1")])
def test_operator_that_the_engine_refuses_is_named_with_its_module(operator, where, make, load, monkeypatch):
    overload = getattr(torch.ops.aten, operator).default
    monkeypatch.setitem(RULES, overload, lambda context, _, x, **__: context.add("NoSuchOperator", x.name))
    monkeypatch.setattr(onnx.checker, "check_model", lambda _: None)
    monkeypatch.setattr("export.compile.check_graph", lambda *_: None)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Sequential(nn.Conv2d(4, 4, 1), Sine()))
    compiled = compile_model(make(encoder=encoder))
    with pytest.raises(OperatorUnsupported, match="the engine does not load it") as caught:
        check_loading(compiled.graphs, compiled.lowered, load)
    assert (caught.value.operator, caught.value.module) == (str(overload), where)
