"""Make the artifacts of one group's graph, in the environment of onnxruntime-training.

`python -m export.ort_training.artifacts FOLDER` is the command.

This module runs where onnxruntime is onnxruntime-training 1.19.2, and imports nothing of ours. FOLDER has forward.onnx,
job.json ({"trained": names, "frozen": names, "samples": count}) and inputs_<i>.npz; the artifacts and outputs_<i>.npz
are written to it. `python -m export.ort_training.artifacts FOLDER MODEL` runs another training model of the same
group that is there, MODEL.onnx on inputs_MODEL.npz, and writes outputs_MODEL.npz. Exit code 3 where the environment
is another.
The artifacts are those of `generate_artifacts`, with one change: every gradient of the encoder is multiplied by 1/√T,
which a forward graph of plain ONNX cannot say (there is no operator whose gradient differs from its value's). So ONNX
Runtime's own training API, too, trains as the portable engine does.
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
ACCUMULATOR = "InPlaceAccumulatorV2"
"""The operator that puts a parameter's gradient into its buffer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the artifacts in a folder; returns the exit code."""
    name, *models = arguments or sys.argv[1:]
    folder = Path(name)
    try:
        import onnxruntime
        from onnxruntime.training import artifacts
    except ImportError as exc:
        print(f"{sys.executable} has no onnxruntime-training {RELEASE}: {exc}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    onnxruntime.set_default_logger_severity(4)
    job = json.loads((folder / "job.json").read_text())
    runs = {model: [model] for model in models}
    if not runs:
        make(folder, job, artifacts)
        runs = {"training_model": [str(i) for i in range(job["samples"])]}
    forward = onnx.load(folder / "forward.onnx")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in forward.graph.initializer}
    frozen = {name: values[name] for name in job["frozen"]}
    trained = {name: values[name] for name in job["trained"]}
    for model, samples in runs.items():
        session = onnxruntime.InferenceSession(str(folder / f"{model}.onnx"), providers=["CPUExecutionProvider"])
        for sample in samples:
            with np.load(folder / f"inputs_{sample}.npz") as file:
                inputs = dict(file)
            found = run(session, {**inputs, **frozen, **trained}, trained)
            with (folder / f"outputs_{sample}.npz").open("wb") as out:
                np.savez(out, **found)
    return 0


def make(folder: Path, job: dict[str, Any], artifacts: Any) -> None:
    """Make the artifacts of forward.onnx; `artifacts` is the module of onnxruntime-training."""
    artifacts.generate_artifacts(
        onnx.load(folder / "forward.onnx"),
        requires_grad=job["trained"],
        frozen_params=job["frozen"],
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=folder,
    )
    training = onnx.load(folder / "training_model.onnx")
    tasks = sum(output.name.startswith("loss.") for output in training.graph.output)
    scale_encoder_gradients(training, 1 / math.sqrt(tasks))
    for path, model in (("training_model", training), ("eval_model", onnx.load(folder / "eval_model.onnx"))):
        for node in model.graph.node:
            node.doc_string = ""
        (folder / f"{path}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def run(session: Any, inputs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a training model once and return its outputs by name, and the gradients by parameter name."""
    buffers = {name: np.zeros_like(value) for name, value in parameters.items()}
    feeds = {f"{name}_grad.accumulation.buffer": value for name, value in buffers.items()}
    known = {value.name for value in session.get_inputs()}
    # The buffers are changed in place: that is how the operator hands gradients over.
    given = {**inputs, **feeds, "lazy_reset_grad": np.array([True])}
    results = session.run(None, {name: value for name, value in given.items() if name in known})
    found = {output.name: value for output, value in zip(session.get_outputs(), results, strict=True)}
    return {**found, **{f"grad.{name}": value for name, value in buffers.items()}}


def scale_encoder_gradients(model: onnx.ModelProto, factor: float) -> None:
    """Multiply the gradients of the encoder's parameters by a factor, before they go into their buffers."""
    constant = numpy_helper.from_array(np.array(factor, np.float32), "encoder_gradient_factor")
    nodes = []
    for node in model.graph.node:
        if node.op_type == ACCUMULATOR and node.input[0].startswith("encoder."):
            gradient = node.input[1]
            scaled = f"{gradient}.scaled"
            nodes.append(helper.make_node("Mul", [gradient, constant.name], [scaled], name=f"scale {gradient}"))
            node.input[1] = scaled
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.append(constant)


if __name__ == "__main__":
    sys.exit(main())
