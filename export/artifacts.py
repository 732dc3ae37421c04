"""Makes official artifacts of one group's graph: `python -m export.artifacts FOLDER`, in the official environment.

This module runs where onnxruntime is onnxruntime-training 1.19.2, and imports nothing of ours. FOLDER has forward.onnx,
job.json ({"parameters": names, "samples": count}) and inputs_<i>.npz; the artifacts and outputs_<i>.npz are written to
it. Exit code 3 where the environment is another.

The artifacts are those of `generate_artifacts`, with one change: the gradient that the encoder receives, z_grad, is
multiplied by 1/√T, which a forward graph of plain ONNX cannot say (there is no operator whose gradient differs from
its value's). So the official API, too, trains as the portable engine does.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

RELEASE = "1.19.2"
EXIT_ENVIRONMENT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the artifacts in a folder; returns the exit code."""
    folder = Path((arguments or sys.argv[1:])[0])
    try:
        import onnxruntime
        from onnxruntime.training import artifacts
    except ImportError as exc:
        print(f"{sys.executable} has no onnxruntime-training {RELEASE}: {exc}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    onnxruntime.set_default_logger_severity(4)
    job = json.loads((folder / "job.json").read_text())
    artifacts.generate_artifacts(
        onnx.load(folder / "forward.onnx"),
        requires_grad=job["parameters"],
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=folder,
    )
    training = onnx.load(folder / "training_model.onnx")
    tasks = sum(output.name.startswith("loss.") for output in training.graph.output)
    scale_encoder_gradient(training, 1 / math.sqrt(tasks))
    evaluation = onnx.load(folder / "eval_model.onnx")
    keep_batch_statistics(evaluation)
    for path, model in (("training_model", training), ("eval_model", evaluation)):
        drop_output(model, "z")
        for node in model.graph.node:
            node.doc_string = ""
        (folder / f"{path}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(str(folder / "training_model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name.startswith("loss")]
    forward = onnx.load(folder / "forward.onnx")
    parameters = {t.name: numpy_helper.to_array(t) for t in forward.graph.initializer if t.name in job["parameters"]}
    for i in range(job["samples"]):
        with np.load(folder / f"inputs_{i}.npz") as file:
            inputs = dict(file)
        found = gradients(session, names, {**inputs, **parameters}, parameters)
        with (folder / f"outputs_{i}.npz").open("wb") as out:
            np.savez(out, **found)
    return 0


def gradients(session: Any, names: list[str], inputs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The losses, and the gradients by parameter name, of one run of a training model."""
    buffers = {name: np.zeros_like(value) for name, value in parameters.items()}
    feeds = {f"{name}_grad.accumulation.buffer": value for name, value in buffers.items()}
    outputs = [output.name for output in session.get_outputs()]
    # The buffers are changed in place: that is how the operator hands gradients over.
    results = session.run(outputs, {**inputs, **feeds, "lazy_reset_grad": np.array([True])})
    losses = {name: value for name, value in zip(outputs, results, strict=True) if name in names}
    return {**losses, **{f"grad.{name}": value for name, value in buffers.items()}}


def scale_encoder_gradient(model: onnx.ModelProto, factor: float) -> None:
    """Multiply what flows into the encoder, z_grad, by a factor, where it is made."""
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if "z_grad" in node.output)
    outputs = nodes[place].output
    outputs[:] = ["z_grad.whole" if name == "z_grad" else name for name in outputs]
    constant = numpy_helper.from_array(np.array(factor, np.float32), "encoder_gradient_factor")
    scale = helper.make_node("Mul", ["z_grad.whole", constant.name], ["z_grad"], name="scale_encoder_gradient")
    nodes.insert(place + 1, scale)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(constant)


def keep_batch_statistics(model: onnx.ModelProto) -> None:
    """Normalise images by the batch in evaluation too, as what keeps no running statistics does.

    generate_artifacts sets evaluation mode but leaves three outputs, which no version of onnxruntime loads.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.extend(_by_the_batch(node) if node.op_type == "BatchNormalization" else [node])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    constants = {"batch.axes": np.array([0, 2, 3], np.int64), "batch.channels": np.array([-1, 1, 1], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def _by_the_batch(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, scale, shift, *_ = node.input
    y = node.output[0]
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    steps = (
        ("ReduceMean", (x, "batch.axes"), "mean"),
        ("Sub", (x, f"{y}.mean"), "centred"),
        ("Mul", (f"{y}.centred", f"{y}.centred"), "square"),
        ("ReduceMean", (f"{y}.square", "batch.axes"), "variance"),
        ("Add", (f"{y}.variance", f"{y}.epsilon"), "sum"),
        ("Sqrt", (f"{y}.sum",), "deviation"),
        ("Div", (f"{y}.centred", f"{y}.deviation"), "normal"),
        ("Reshape", (scale, "batch.channels"), "scale"),
        ("Mul", (f"{y}.normal", f"{y}.scale"), "scaled"),
        ("Reshape", (shift, "batch.channels"), "shift"),
    )
    made = [helper.make_node(op, inputs, [f"{y}.{result}"]) for op, inputs, result in steps]
    constant = helper.make_node("Constant", [], [f"{y}.epsilon"], value_float=epsilon)
    return [constant, *made, helper.make_node("Add", [f"{y}.scaled", f"{y}.shift"], [y])]


def drop_output(model: onnx.ModelProto, name: str) -> None:
    """Make an output of a model an inner value again."""
    kept = [output for output in model.graph.output if output.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)


if __name__ == "__main__":
    sys.exit(main())
