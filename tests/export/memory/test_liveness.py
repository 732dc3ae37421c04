from dataclasses import dataclass

import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402

from export.errors import ExportError  # noqa: E402
from export.memory.liveness import COLUMNS_BYTES, THREADS, Size, liveness  # noqa: E402

pytestmark = pytest.mark.workstation
SPARE = 65536
BATCHES = (2, 3)
KIB = 1024


@dataclass
class Ran:
    operator: str
    inputs: tuple
    outputs: tuple
    allocated_bytes: int


def model_of(nodes, outputs):
    specs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    return helper.make_model(helper.make_graph(nodes, "test", [], specs))


def runs_of(*nodes):
    """The runs of nodes given as (operator, input shapes, output shape, allocates); B stands for the micro-batch."""
    found = []
    for batch in BATCHES:
        run = []
        for operator, inputs, output, allocates in nodes:
            shape = tuple(batch if d == "B" else d for d in output)
            shapes = tuple(("float", tuple(batch if d == "B" else d for d in one)) for one in inputs)
            elements = 4
            for d in shape:
                elements *= d
            run.append(Ran(operator, shapes, (("float", shape),), elements if allocates else 0))
        found.append(run)
    return found


WIDE = ("B", 256)  # 1 KiB a sample


def test_size_is_the_line_through_two_points():
    size = Size.through(BATCHES, (100, 130))
    assert (size.fixed, size.per_sample) == (40, 30)
    assert [size.at(batch) for batch in (1, 2, 8)] == [70, 100, 280]


def test_liveness_frees_a_value_after_its_last_reader():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    ran = [("Neg", [WIDE], WIDE, True)] * 3 + [("Add", [WIDE, WIDE], WIDE, False)]
    live = liveness(model_of(nodes, ["y"]), BATCHES, runs_of(*ran))
    assert [moment.freed for moment in live.moments] == [[], ["a"], [], ["c", "b"]]
    # Two values at a time; c takes the place of a.
    assert [live.transient_bytes(batch, SPARE) for batch in (1, 4)] == [2 * KIB, 8 * KIB]
    assert live.held_line == (0, 0)


def test_liveness_of_a_value_in_place_is_its_buffers():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    ran = [("Neg", [WIDE], WIDE, True), ("Relu", [WIDE], WIDE, False), ("Reshape", [WIDE, (2,)], WIDE, False)]
    live = liveness(model_of(nodes, ["y"]), BATCHES, runs_of(*ran, ("Neg", [WIDE], WIDE, False)))
    assert [moment.freed for moment in live.moments] == [[], [], [], ["a"]]
    assert live.transient_bytes(4, SPARE) == 4 * KIB


def test_liveness_of_a_result_in_place_is_in_the_buffer_that_nothing_else_reads():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Neg", ["a"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    ran = [("Neg", [WIDE], WIDE, True)] * 2 + [("Mul", [WIDE, WIDE], WIDE, False), ("Neg", [WIDE], WIDE, True)]
    live = liveness(model_of(nodes, ["y"]), BATCHES, runs_of(*ran, ("Add", [WIDE, WIDE], WIDE, False)))
    assert [moment.freed for moment in live.moments] == [[], [], [], ["a"], ["b", "d"]]
    assert live.transient_bytes(4, SPARE) == 12 * KIB


def test_liveness_of_a_fused_convolution_is_in_place_of_what_it_adds():
    image = ("B", 256, 1, 1)
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("FusedConv", ["a", "w", "bias", "z"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    ran = [("Neg", [image], image, True)] * 2
    ran += [("FusedConv", [image, (256, 1, 1, 1), (256,), image], image, False), ("Neg", [image], image, False)]
    live = liveness(model_of(nodes, ["y"]), BATCHES, runs_of(*ran))
    assert [moment.freed for moment in live.moments] == [[], [], ["a"], ["z"]]


def test_liveness_holds_outputs_that_the_engine_allocated():
    nodes = [
        helper.make_node("Neg", ["x"], ["saved.0"]),
        helper.make_node("Neg", ["saved.0"], ["a"]),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    ran = [("Neg", [WIDE], WIDE, True), ("Neg", [WIDE], WIDE, True), ("Neg", [WIDE], WIDE, False)]
    live = liveness(model_of(nodes, ["saved.0", "y"]), BATCHES, runs_of(*ran))
    assert live.held_line == (0, KIB)
    assert live.held_bytes(4) == 4 * KIB
    assert live.transient_bytes(4, SPARE) == 4 * KIB


def test_liveness_knows_what_a_convolution_takes_for_itself():
    image, kernel, few = ("B", 8, 16, 16), (8, 8, 3, 3), ("B", 8, 2, 2)

    def scratch(operator, inputs, output, **attributes):
        node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)
        live = liveness(model_of([node], ["y"]), BATCHES, runs_of((operator, inputs, output, False)))
        return [size.at(5) for size in live.moments[0].scratch]

    assert scratch("Conv", [image, kernel], image) == [COLUMNS_BYTES * THREADS]
    assert scratch("Conv", [few, kernel], few) == [4 * 8 * 9 * 4]  # eight filters, four pixels
    assert scratch("Conv", [image, (8, 8, 1, 1)], image, strides=[1, 1]) == []
    assert scratch("Conv", [image, (8, 8, 1, 1)], few, strides=[8, 8]) == [4 * 8 * 4]
    assert scratch("ConvTranspose", [few, kernel], image) == [4 * 8 * 9 * 4]


def test_liveness_of_a_scan_counts_what_it_writes_and_one_step_of_its_graph():
    step = [helper.make_node("Neg", ["s"], ["t"]), helper.make_node("Neg", ["t"], ["u"])]
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node(
            "Scan", ["state", "a"], ["b"], body=helper.make_graph(step, "step", [], []), num_scan_inputs=1
        ),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    sequence = ("B", 8, 32)  # 1 KiB a sample
    inside = [("Neg", [("B", 32)], ("B", 32), True)] * 2 * 8
    ran = [("Neg", [sequence], sequence, True), *inside, ("Scan", [("B", 32), sequence], sequence, True)]
    ran += [("Neg", [sequence], sequence, False)]
    live = liveness(model_of(nodes, ["y"]), BATCHES, runs_of(*ran))
    assert [moment.freed for moment in live.moments] == [[], ["a"], ["b"]]
    assert [size.at(4) for size in live.moments[1].scratch] == [4 * KIB // 4]
    assert live.transient_bytes(4, SPARE) == 9 * KIB
    with pytest.raises(ExportError, match="ran other nodes"):
        liveness(model_of(nodes, ["y"]), BATCHES, runs_of(*ran[:-2], ran[-1]))


def test_liveness_knows_what_a_choice_takes_for_itself():
    node = helper.make_node("Where", ["mask", "x", "zero"], ["y"])
    live = liveness(model_of([node], ["y"]), BATCHES, runs_of(("Where", [("B", 1), WIDE, ()], WIDE, False)))
    assert [size.at(4) for size in live.moments[0].scratch] == [4 * KIB, 4 * 4]


def test_liveness_counts_what_indices_take_outside_the_arena():
    node = helper.make_node("ScatterElements", ["x", "i", "v"], ["y"])
    ran = ("ScatterElements", [WIDE, ("B", 128), ("B", 128)], WIDE, False)
    live = liveness(model_of([node], ["y"]), BATCHES, runs_of(ran))
    assert live.moments[0].outside.at(4) == 4 * KIB
    assert live.transient_bytes(4, SPARE) == 4 * KIB


def test_liveness_of_other_nodes_than_ran_is_refused():
    node = helper.make_node("Neg", ["x"], ["y"])
    with pytest.raises(ExportError, match="other nodes"):
        liveness(model_of([node], ["y"]), BATCHES, runs_of(("Relu", [WIDE], WIDE, False)))


def test_liveness_of_an_unknown_type_is_refused():
    node = helper.make_node("Neg", ["x"], ["y"])
    runs = runs_of(("Neg", [WIDE], WIDE, False))
    for run in runs:
        run[0].outputs = (("bfloat16", (2,)),)
    with pytest.raises(ExportError, match="bfloat16"):
        liveness(model_of([node], ["y"]), BATCHES, runs)
