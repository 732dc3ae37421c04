"""ONNX Runtime training artifacts of a group of tasks, made by onnxruntime-training 1.19.2.

One forward graph of all tasks is traced from the model and translated with rules whose operators 1.19.2 differentiates
on a CPU (export.lowering.ort_training). A group's graph is the part of it that the group's losses need, and from that
`export.ort_training.artifacts` makes the artifacts in an environment of its own, because onnxruntime-training and
onnxruntime have the same import name. So a group that is decided later needs neither PyTorch nor the model's file.

Forward graph: x, target.<task> …, parameters, state, seed.<part> … → loss.<task> …, next.<part>.<name> …
GroupGraph's graph: the same of its tasks, and loss_weights (T,) → loss = Σ weight_i · L_i

Running statistics are inputs (state.<part>.<name>) and outputs; where dropout draws, each part has a seed, and draws
what its portable graphs draw with it. Parameters that no loss of a group depends on, such as those of a stage of the
encoder that none of its heads uses, are not trained there: their gradient is zero, as in the portable graphs.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from edge_runtime.wire.operators import ORT_TRAINING as OPERATORS
from edge_runtime.wire.operators import check_graph
from edge_runtime.wire.tensors import STATE, part_of
from export.errors import OrtTrainingImpossible
from export.lowering.context import SEED
from export.lowering.lower import ORT_TRAINING, lower
from export.lowering.ort_training import DIFFERENTIABLE, NO_STEP
from export.model import MultiTaskModel, tensors
from export.model_part import ModelPart
from export.module_state import in_training
from export.onnx_graph import live
from export.ort_training import branch_decisions
from export.parity.check import relative_errors
from export.trace import trace

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3
"""The largest relative difference allowed: its gradient of LayerNormalization rounds more than ours."""
FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
SECONDS = 1800
"""The time limit of the other process: our widest model takes one minute."""

Arrays = Mapping[str, NDArray[Any]]
NEXT = "next."
OTHER = "other_model"


@dataclass(frozen=True)
class GroupGraph:
    """A group's graph, the parameters that its losses depend on, and those that only its next state depends on."""

    graph: onnx.ModelProto
    trained: tuple[str, ...]
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceSample:
    """One batch to compare the artifacts on: its inputs, and the right losses, gradients and next state."""

    inputs: Arrays
    expected: Arrays


DecidedSample = Callable[[], tuple[ReferenceSample, Sequence[NDArray[Any]]]]
"""Gives a sample with the values that the portable graphs decided by."""


@dataclass(frozen=True)
class VerifiedArtifacts:
    """A group's artifacts as bytes by file name, and their largest relative difference to the portable graphs."""

    files: dict[str, bytes]
    max_relative_error: float


def forward_graph(model: MultiTaskModel) -> onnx.ModelProto:
    """Return the forward graph of all tasks in training mode, its parameters and its state as inputs.

    Raises OrtTrainingImpossible, naming operator and module, where 1.19.2 could not differentiate it, and what the
    trace raises.
    """
    if model.stem is not None:
        raise OrtTrainingImpossible(
            "ONNX Runtime training artifacts train a model in one piece, and this one has a stem"
        )
    parts = {name: ModelPart(name, module) for name, module in model.parts().items()}
    held = {name: value for part in parts.values() for name, value in part.tensors().items()}
    names = sorted(held)
    following: list[str] = []
    one_tensor = model.one_tensor  # which runs the encoder: not while it is traced

    def losses(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        targets = dict(zip(model.tasks, rest, strict=False))
        values = dict(zip(names, rest[len(targets) :], strict=True))
        state: dict[str, Tensor] = {}

        def call(part: ModelPart, argument: Any) -> Any:
            done = part.run(argument, part.own(values), part.own(values, STATE))
            state.update({f"{NEXT}{part.name}.{name}": value for name, value in done.state.items()})
            return done.result

        arrays = tensors(call(parts["encoder"], x))
        z = arrays[0] if one_tensor else arrays
        found = [model.losses[t](call(parts[f"head.{t}"], z), targets[t]) for t in model.tasks]
        following[:] = state
        return *found, *state.values()

    def inputs(batch: int) -> list[Tensor]:
        given = [*model.inputs.values(), *(model.example_targets[t] for t in model.tasks)]
        batched = [torch.zeros((batch, *tensor.shape[1:]), dtype=tensor.dtype) for tensor in given]
        return [*batched, *(held[name] for name in names)]

    modules = {name.replace(".", "/"): part.module for name, part in parts.items()}
    with in_training(*modules.values()):
        traced = trace(losses, inputs, nn.ModuleDict(modules))
    graph = lower(
        traced,
        inputs=["x", *(f"target.{task}" for task in model.tasks), *names],
        outputs=[*(f"loss.{task}" for task in model.tasks), *following],
        optional=[name for name in names if name.startswith(STATE)],
        rules=ORT_TRAINING,
        located=True,
        seed=lambda module: f"{SEED}.{module.partition('.')[0].replace('/', '.')}",
    ).model
    check_gradients(graph, [name for name in names if not name.startswith(STATE)])
    return graph


def check_gradients(model: onnx.ModelProto, parameters: Sequence[str]) -> None:
    """Raise OrtTrainingImpossible if a gradient must pass an operator that has no CPU gradient in 1.19.2."""
    depends = set(parameters)
    for node in model.graph.node:
        if node.op_type not in NO_STEP and depends.intersection(_differentiable(node)):
            depends.update(node.output)
    needed = {output.name for output in model.graph.output if output.name.startswith("loss.")}
    for node in reversed(model.graph.node):
        if not needed.intersection(node.output) or not depends.intersection(node.output):
            continue
        if node.op_type not in DIFFERENTIABLE:
            raise OrtTrainingImpossible(
                f"onnxruntime-training 1.19.2 has no CPU gradient for {node.op_type}, which {node.doc_string} uses: "
                "use another operator there, or compile without artifacts (--ort-training off)"
            )
        needed.update(_differentiable(node))


def _differentiable(node: onnx.NodeProto) -> list[str]:
    """Return the inputs of a node that are numbers it computes with, not shapes, places or conditions."""
    if node.op_type == "Where":
        return list(node.input[1:])
    single = {"Expand", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Tile", "Gather", "GatherElements", "Pad"}
    return list(node.input[:1] if node.op_type in single else node.input)


def group_graph(
    forward: onnx.ModelProto, tasks: Sequence[str], parameters: Arrays, fixed: Arrays | None = None
) -> GroupGraph:
    """Cut a group's graph, with its parameters inside: all that its losses and its parts' next state need.

    `fixed` tensors are constants in it.
    """
    fixed = fixed or {}
    losses = [f"loss.{task}" for task in tasks]
    parts = {"encoder", *(f"head.{task}" for task in tasks)}
    outputs = [o for o in forward.graph.output if o.name in losses or part_of(o.name.removeprefix(NEXT)) in parts]
    nodes = list(forward.graph.node)
    nodes += [helper.make_node("Unsqueeze", [name, "group.axis"], [f"group.{name}"]) for name in losses]
    nodes.append(helper.make_node("Concat", [f"group.{name}" for name in losses], ["group.losses"], axis=0))
    nodes.append(helper.make_node("Mul", ["group.losses", "loss_weights"], ["group.weighted"]))
    nodes.append(helper.make_node("ReduceSum", ["group.weighted", "group.axis"], ["loss"], keepdims=0))
    of_loss = {name for node in live(nodes, {"loss"}) for name in node.input}
    nodes = live(nodes, {"loss", *(output.name for output in outputs)})
    used = {name for node in nodes for name in node.input}
    inside = {**parameters, **fixed}
    inputs = [i for i in forward.graph.input if i.name in used and i.name not in inside]
    inputs.append(helper.make_tensor_value_info("loss_weights", onnx.TensorProto.FLOAT, [len(tasks)]))
    total = helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, [])
    constants = [tensor for tensor in forward.graph.initializer if tensor.name in used]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "group.axis"))
    constants += [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in inside.items() if n in used]
    graph = helper.make_graph(nodes, "mas-edge", inputs, [total, *outputs], constants)
    model = helper.make_model(
        graph, opset_imports=forward.opset_import, ir_version=forward.ir_version, producer_name=forward.producer_name
    )
    onnx.checker.check_model(model)
    trained = tuple(name for name in parameters if name in of_loss)
    frozen = tuple(name for name in parameters if name in used - of_loss)
    return GroupGraph(model, trained, frozen)


def make_artifacts(
    group: GroupGraph, samples: Sequence[ReferenceSample], python: Path, decided_sample: DecidedSample | None = None
) -> VerifiedArtifacts:
    """Make a group's artifacts with the Python of onnxruntime-training, and compare them with the samples.

    Each tensor's smallest difference over the samples counts (export.parity.check says why). Where one is over the
    tolerance, the training model is also compared with `decided_sample`, deciding as the portable graphs did. Raises
    OrtTrainingImpossible.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "forward.onnx").write_bytes(group.graph.SerializeToString(deterministic=True))
        job = {"trained": group.trained, "frozen": group.frozen, "samples": len(samples)}
        (folder / "job.json").write_text(json.dumps(job))
        for i, sample in enumerate(samples):
            _write(folder, str(i), sample.inputs)
        _run(python, folder)
        errors: dict[str, float] = {}
        for i, sample in enumerate(samples):
            found = {name: np.zeros_like(value) for name, value in sample.expected.items()} | _read(folder, str(i))
            for tensor, error in relative_errors(found, sample.expected).items():
                errors[tensor] = min(errors.get(tensor, float("inf")), error)
        if decided_sample is not None and not max(errors.values()) <= TOLERANCE:
            again = _deciding_alike(folder, python, *decided_sample())
            errors |= {name: min(errors[name], error) for name, error in again.items()}
        worst, error = max(errors.items(), key=lambda item: item[1])
        if not error <= TOLERANCE:
            raise OrtTrainingImpossible(
                f"the training model's {worst} differs from the portable graphs by {error:.1e} relative, "
                f"more than {TOLERANCE:.0e}"
            )
        files = {name: (folder / name).read_bytes() for name in FILES}
        check_graph(files[TRAINING], TRAINING, OPERATORS)
        return VerifiedArtifacts(files, error)


def _deciding_alike(
    folder: Path, python: Path, sample: ReferenceSample, decided: Sequence[NDArray[Any]]
) -> Mapping[str, float]:
    """Return the gradients' errors where the training model decides by the values of the portable graphs, `decided`.

    Its own values are read first. Each is replaced by the portable one that equals it but for rounding; one that has
    none stays. A second run has another last digit in all of these: the change that this alone makes is rounding
    (export.parity.check.ROUNDING), such as all of the gradient of a bias before a normalisation.
    """
    model = onnx.load(folder / TRAINING)
    names = branch_decisions.deciding_values(model.graph)
    own = _run_model(python, folder, branch_decisions.with_outputs(model, names), sample.inputs)
    values = {
        name: value for name in names if (value := branch_decisions.nearest_equal(own[name], decided)) is not None
    }
    model = branch_decisions.with_inputs(model, values)
    expected = {name: value for name, value in sample.expected.items() if name.startswith("grad.")}
    zeros = {name: np.zeros_like(value) for name, value in expected.items()}
    found, other = (
        zeros | _run_model(python, folder, model, {**sample.inputs, **branch_decisions.as_inputs(arrays)})
        for arrays in (values, branch_decisions.with_other_last_digits(values))
    )
    rounded = {name: value + (other[name] - found[name]) for name, value in expected.items()}
    return relative_errors(found, expected, rounded)


def _run_model(python: Path, folder: Path, model: onnx.ModelProto, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Run another training model of the same group and return its outputs."""
    onnx.save(model, folder / f"{OTHER}.onnx")
    _write(folder, OTHER, inputs)
    _run(python, folder, OTHER)
    return _read(folder, OTHER)


def _write(folder: Path, name: str, inputs: Arrays) -> None:
    with (folder / f"inputs_{name}.npz").open("wb") as file:
        np.savez(file, **inputs)  # type: ignore[arg-type]


def _read(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(folder / f"outputs_{name}.npz") as file:
        return dict(file)


def _run(python: Path, folder: Path, *models: str) -> None:
    command = [str(python), "-m", "export.ort_training.artifacts", str(folder), *models]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise OrtTrainingImpossible(f"{python} cannot make the artifacts: {exc}") from exc
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise OrtTrainingImpossible(f"onnxruntime-training could not make the artifacts: {lines[-1]}")
