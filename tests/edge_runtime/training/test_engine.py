from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_runtime.training.engine import Engine, EngineError, engine_version

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def graph():
    return Engine().load(FIXTURES / "model.onnx")


def image(batch=2):
    return np.random.default_rng(0).random((batch, 3, 16, 16), np.float32)


def outputs(batch=2):
    channels = {"depth": 1, "normals": 3, "segmentation": 4}
    return {task: np.empty((batch, count, 16, 16), np.float32) for task, count in channels.items()}


def test_engine_says_what_it_is():
    assert engine_version().startswith("onnxruntime 1.")


def test_engine_without_a_provider_says_what_to_install():
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EngineError, match="has no CUDAExecutionProvider: install a build"):
        Engine(provider="cuda")


def test_graph_writes_into_the_arrays_it_is_given(graph):
    found = outputs()
    graph.run({"image": image(), "more": np.zeros(1)}, found)
    fresh = graph.call({"image": image()})
    assert fresh.keys() == found.keys()
    for task, array in fresh.items():
        np.testing.assert_array_equal(found[task], array)


def test_graph_takes_any_batch(graph):
    for batch in (1, 5, 2):
        found = outputs(batch)
        graph.run({"image": image(batch)}, found)
        np.testing.assert_allclose(found["depth"], graph.call({"image": image(batch)})["depth"])


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 100])
def test_file_that_is_no_graph_is_named(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.onnx cannot be loaded"):
        Engine().load(path)


def test_truncated_graph_is_named(tmp_path):
    data = (FIXTURES / "model.onnx").read_bytes()
    path = tmp_path / "broken.onnx"
    for length in range(0, len(data), 997):
        path.write_bytes(data[:length])
        with pytest.raises(EngineError, match=r"broken\.onnx"):
            Engine().load(path).call({"image": image()})


def test_graph_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"absent\.onnx cannot be loaded"):
        Engine().load(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    "odd", [np.zeros((2, 3, 16, 15), np.float32), np.zeros((2, 16), np.float32), np.zeros((2, 3, 16, 16), np.int64)]
)
def test_input_that_does_not_fit_is_refused(graph, odd):
    with pytest.raises(EngineError, match=r"model\.onnx failed"):
        graph.run({"image": odd}, outputs())
    with pytest.raises(EngineError, match=r"model\.onnx failed"):
        graph.call({"image": odd})


def test_output_that_does_not_fit_is_refused(graph):
    with pytest.raises(EngineError, match=r"model\.onnx failed"):
        graph.run({"image": image()}, outputs() | {"depth": np.empty((2, 1, 16, 15), np.float32)})
    with pytest.raises(EngineError, match=r"model\.onnx failed"):
        graph.run({"image": image()}, outputs() | {"depth": np.empty((2, 1, 16, 16), np.int64)})


def test_input_or_output_that_is_missing_is_refused(graph):
    with pytest.raises(EngineError, match=r"model\.onnx.*image"):
        graph.run({}, outputs())
    with pytest.raises(EngineError, match=r"model\.onnx.*image"):
        graph.call({"x": image()})
    with pytest.raises(EngineError, match=r"model\.onnx.*depth"):
        graph.run({"image": image()}, {name: array for name, array in outputs().items() if name != "depth"})


def test_memory_does_not_grow_with_runs(graph):
    """200 runs of changing batch sizes, after some to warm up: within what the allocator may keep."""
    found = {batch: outputs(batch) for batch in (1, 3, 4)}

    def resident():
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def runs(count):
        for i in range(count):
            batch = (1, 3, 4)[i % 3]
            graph.run({"image": image(batch)}, found[batch])

    runs(30)
    before = resident()
    runs(200)
    assert resident() - before < 8 * 2**20


def test_engine_observes_what_each_node_takes():
    runs = [({"image": image(batch)}, outputs(batch)) for batch in (2, 3)]
    found = Engine().observe(FIXTURES / "model.onnx", runs)
    assert found.optimised
    first, second = found.runs
    assert [one.operator for one in first] == [one.operator for one in second]
    assert any(one.operator == "Conv" for one in first)
    assert {dict(one.outputs)["float"][0] for one in second if one.operator == "Conv"} == {3}
    assert 0 < sum(one.allocated_bytes for one in first) < sum(one.allocated_bytes for one in second)
