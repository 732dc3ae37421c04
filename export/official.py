"""Official ONNX Runtime training artifacts of a group of tasks, made by onnxruntime-training 1.19.2.

One forward graph of all tasks is traced from the model and translated with rules whose operators 1.19.2 differentiates
on a CPU (export.lowering.official). A group's graph is the part of it that the group's losses need, and from that
`export.artifacts` makes the artifacts in an environment of its own, because onnxruntime-training and onnxruntime have
the same import name. So a group that is decided later needs neither PyTorch nor the model's file.

Forward graph: x, target.<task> …, parameters → z, loss.<task> …
Group's graph: x, target.<task> …, loss_weights (T,), parameters → loss = Σ weight_i · L_i, loss.<task> …, z
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from edge_runtime.wire.manifest import TRAINING
from edge_runtime.wire.operators import OFFICIAL as OFFICIAL_OPERATORS
from edge_runtime.wire.operators import check_graph
from edge_runtime.wire.tensors import part_of
from export.errors import ModelInvalid, OfficialImpossible
from export.lowering.context import SEED
from export.lowering.lower import OFFICIAL, lower
from export.lowering.official import DIFFERENTIABLE, NO_STEP
from export.model import MultiTaskModel, represent
from export.onnx_graph import live
from export.parity import relative_errors
from export.running import running_statistics
from export.trace import trace

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-3
"""Relative: the gradient of its LayerNormalization rounds more than ours."""
FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
SECONDS = 1800
"""How long the other process may take: the widest model of ours takes one minute."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One batch to hold the artifacts to: its inputs, and the losses and gradients that are right for it."""

    inputs: Arrays
    expected: Arrays


@dataclass(frozen=True)
class Made:
    """A group's artifacts as bytes by file name, and their largest relative difference to what is right."""

    files: dict[str, bytes]
    max_relative_error: float


def forward_graph(model: MultiTaskModel) -> onnx.ModelProto:
    """The forward graph of all tasks, its parameters as inputs.

    Raises OfficialImpossible, naming operator and module, where 1.19.2 could not differentiate it, and what the trace
    raises.
    """
    parts = model.parts()
    for part, module in parts.items():
        module.train()
        if names := sorted(running_statistics(module)):
            raise OfficialImpossible(
                f"official artifacts do not keep running statistics, as {part}.{names[0]} is: use GroupNorm, or do "
                "without official artifacts (--official off)"
            )
    if (count := len(represent(model))) > 1:
        raise OfficialImpossible(
            f"official artifacts are made for a representation of one array, and the encoder returns {count}: do "
            "without official artifacts (--official off)"
        )
    parameters = {n: p for part, module in parts.items() for n, p in sorted(module.named_parameters(prefix=part))}
    names = sorted(parameters)

    def losses(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        targets = dict(zip(model.tasks, rest, strict=False))
        values = dict(zip(names, rest[len(targets) :], strict=True))

        def call(part: str, argument: Tensor) -> Tensor:
            own = {n.removeprefix(f"{part}."): v for n, v in values.items() if part_of(n) == part}
            result: Tensor = torch.func.functional_call(parts[part], own, (argument,))
            return result

        z = call("encoder", x)
        return z, *(model.losses[t](call(f"head.{t}", z), targets[t]) for t in model.tasks)

    def inputs(batch: int) -> list[Tensor]:
        given = [model.example_input, *(model.example_targets[t] for t in model.tasks)]
        batched = [torch.zeros((batch, *tensor.shape[1:]), dtype=tensor.dtype) for tensor in given]
        return [*batched, *(parameters[name] for name in names)]

    root = nn.ModuleDict({part.replace(".", "/"): module for part, module in parts.items()})
    graph = lower(
        trace(losses, inputs, root),
        inputs=["x", *(f"target.{task}" for task in model.tasks), *names],
        outputs=["z", *(f"loss.{task}" for task in model.tasks)],
        rules=OFFICIAL,
        located=True,
    )
    if SEED in {value.name for value in graph.graph.input}:
        raise OfficialImpossible("official artifacts have no seed for dropout: do without them (--official off)")
    check_gradients(graph, names)
    return graph


def check_gradients(model: onnx.ModelProto, parameters: Sequence[str]) -> None:
    """Raises OfficialImpossible if a gradient must pass an operator that 1.19.2 has no gradient of for a CPU."""
    depends = set(parameters)
    for node in model.graph.node:
        if node.op_type not in NO_STEP and depends.intersection(_differentiable(node)):
            depends.update(node.output)
    needed = {output.name for output in model.graph.output}
    for node in reversed(model.graph.node):
        if not needed.intersection(node.output) or not depends.intersection(node.output):
            continue
        if node.op_type not in DIFFERENTIABLE:
            raise OfficialImpossible(
                f"onnxruntime-training 1.19.2 has no CPU gradient for {node.op_type}, which {node.doc_string} uses: "
                "use another operator there, or do without official artifacts (--official off)"
            )
        needed.update(_differentiable(node))


def _differentiable(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node that are numbers it computes with, and not shapes, places or conditions."""
    if node.op_type == "Where":
        return list(node.input[1:])
    single = {"Expand", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Tile", "Gather", "GatherElements", "Pad"}
    return list(node.input[:1] if node.op_type in single else node.input)


def group_graph(forward: onnx.ModelProto, tasks: Sequence[str], parameters: Arrays) -> onnx.ModelProto:
    """A group's graph with its parameters inside: only what its losses need of the forward graph of all tasks."""
    wanted = ["z", *(f"loss.{task}" for task in tasks)]
    loss, nodes = [], list(forward.graph.node)
    boundary = next(node for node in nodes if node.output[0] == "z").input[0]
    # The value itself is named z, without the Identity that makes it an output: its gradient is then named z_grad.
    nodes = [_renamed(node, boundary, "z") for node in nodes if node.output[0] != "z"]
    for task in tasks:
        nodes.append(helper.make_node("Unsqueeze", [f"loss.{task}", "group.axis"], [f"group.{task}"]))
        loss.append(f"group.{task}")
    nodes.append(helper.make_node("Concat", loss, ["group.losses"], axis=0))
    nodes.append(helper.make_node("Mul", ["group.losses", "loss_weights"], ["group.weighted"]))
    nodes.append(helper.make_node("ReduceSum", ["group.weighted", "group.axis"], ["loss"], keepdims=0))
    nodes = live(nodes, {"loss", *wanted})
    used = {name for node in nodes for name in node.input}
    inputs = [i for i in forward.graph.input if i.name in used and i.name not in parameters]
    inputs.append(helper.make_tensor_value_info("loss_weights", onnx.TensorProto.FLOAT, [len(tasks)]))
    outputs = {output.name: output for output in forward.graph.output}
    total = helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, [])
    constants = [tensor for tensor in forward.graph.initializer if tensor.name in used]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "group.axis"))
    constants += [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in parameters.items() if n in used]
    if missing := sorted(parameters.keys() - used):
        raise ModelInvalid(f"parameter {missing[0]} has no effect on the losses of {', '.join(tasks)}")
    graph = helper.make_graph(nodes, "mas-edge", inputs, [total, *(outputs[n] for n in (*wanted[1:], "z"))], constants)
    model = helper.make_model(
        graph, opset_imports=forward.opset_import, ir_version=forward.ir_version, producer_name=forward.producer_name
    )
    onnx.checker.check_model(model)
    return model


def _renamed(node: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        values[:] = [new if value == old else value for value in values]
    return copy


def make_artifacts(graph: onnx.ModelProto, parameters: Sequence[str], samples: Sequence[Sample], python: Path) -> Made:
    """A group's artifacts, made by the Python of the official environment and held to the samples.

    Each tensor's smallest difference over the samples counts (export.parity says why). Raises OfficialImpossible.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "forward.onnx").write_bytes(graph.SerializeToString(deterministic=True))
        (folder / "job.json").write_text(json.dumps({"parameters": list(parameters), "samples": len(samples)}))
        for i, sample in enumerate(samples):
            with (folder / f"inputs_{i}.npz").open("wb") as file:
                np.savez(file, **sample.inputs)  # type: ignore[arg-type]
        _run(python, folder)
        errors: dict[str, float] = {}
        for i, sample in enumerate(samples):
            with np.load(folder / f"outputs_{i}.npz") as found:
                for tensor, error in relative_errors(found, sample.expected).items():
                    errors[tensor] = min(errors.get(tensor, float("inf")), error)
        worst, error = max(errors.items(), key=lambda item: item[1])
        if not error <= TOLERANCE:
            raise OfficialImpossible(
                f"the official training model's {worst} differs from the portable graphs by {error:.1e} relative, "
                f"more than {TOLERANCE:.0e}"
            )
        files = {name: (folder / name).read_bytes() for name in FILES}
        check_graph(files[TRAINING], TRAINING, OFFICIAL_OPERATORS)
        return Made(files, error)


def _run(python: Path, folder: Path) -> None:
    command = [str(python), "-m", "export.artifacts", str(folder)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise OfficialImpossible(f"{python} cannot make official artifacts: {exc}") from exc
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise OfficialImpossible(f"onnxruntime-training could not make the artifacts: {lines[-1]}")
