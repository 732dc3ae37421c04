"""The three graphs of a multi-task model: encoder forward, one step for each head, encoder backward.

PyTorch's autograd differentiates the model while it is traced (export.trace); the operators of both directions are then
translated (export.lowering). Graph names, inputs and outputs are those of edge_runtime.wire.manifest.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_runtime import __version__
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.tensors import TensorTable, Vector, pack
from export.errors import ModelInvalid
from export.lowering import lower
from export.model import MultiTaskModel
from export.onnx_graph import OPSET
from export.trace import trace

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compiled:
    """A model's graphs as bytes by name, its tensor table and its initial parameters as one vector."""

    model: MultiTaskModel
    graphs: dict[str, bytes]
    table: TensorTable
    weights: Vector


def compile_model(model: MultiTaskModel, progress: Progress = lambda *_: None) -> Compiled:
    """Differentiate and translate a model. `progress(graph, done, total)` is told of each graph.

    Raises ModelInvalid or OperatorUnsupported, naming the module.
    """
    model.check()
    for module in model.parts().values():
        module.train()
    jobs = _jobs(model)
    graphs = {}
    for i, (name, job) in enumerate(jobs.items()):
        progress(name, i, len(jobs))
        graphs[name] = job().SerializeToString(deterministic=True)
    progress("", len(jobs), len(jobs))
    parameters = named_parameters(model)
    table = TensorTable.of({name: tuple(p.shape) for name, p in parameters.items()})
    weights = np.empty(table.size, np.float32)
    for name, view in table.views(weights).items():
        view[...] = parameters[name].detach().numpy()
    return Compiled(model=model, graphs=graphs, table=table, weights=weights)


def named_parameters(model: MultiTaskModel) -> dict[str, nn.Parameter]:
    """All parameters by their names on the wire."""
    return {name: p for part, module in model.parts().items() for name, p in module.named_parameters(prefix=part)}


def describe(compiled: Compiled, name: str, parity: wire.Parity) -> wire.Manifest:
    """The manifest of a compiled model."""
    model = compiled.model
    with torch.no_grad():
        z = model.encoder(model.example_input)
        tasks = tuple(
            wire.Task(name=t, target=_array(model.example_targets[t]), prediction=_array(model.heads[t](z)))
            for t in model.tasks
        )
    return wire.Manifest(
        format=1,
        name=name,
        tasks=tasks,
        input=_array(model.example_input),
        representation=_array(z),
        tensors=compiled.table.tensors,
        graphs={graph: _file(data) for graph, data in sorted(compiled.graphs.items())},
        weights=_file(pack(compiled.table, compiled.weights)),
        opset=OPSET,
        parity=parity,
        versions={"mas-edge": __version__, "torch": str(torch.__version__), "onnx": version("onnx")},
    )


def _file(data: bytes) -> wire.File:
    return wire.File(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _array(tensor: Tensor) -> wire.Array:
    spec = {"shape": tuple(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
    return msgspec.convert(spec, wire.Array)


def _jobs(model: MultiTaskModel) -> dict[str, Callable[[], onnx.ModelProto]]:
    x = model.example_input
    with torch.no_grad():
        z = model.encoder(x)
    jobs: dict[str, Callable[[], onnx.ModelProto]] = {
        "encoder.forward": lambda: _forward(model.encoder, "encoder", ("x", x), "z"),
        "encoder.backward": lambda: _backward(model.encoder, x, z),
    }
    for task in model.tasks:
        jobs[f"head.{task}.step"] = lambda task=task: _step(model, task, z)  # type: ignore[misc]
        jobs[f"head.{task}.loss"] = lambda task=task: _loss(model, task, z)  # type: ignore[misc]
        jobs[f"head.{task}.predict"] = (
            lambda task=task: _forward(model.heads[task], f"head.{task}", ("z", z), "prediction")  # type: ignore[misc]
        )
    return jobs


def _forward(module: nn.Module, part: str, source: tuple[str, Tensor], result: str) -> onnx.ModelProto:
    names, call = _functional(module)

    def forward(value: Tensor, *parameters: Tensor) -> tuple[Tensor]:
        return (call(value, parameters),)

    return _export(module, part, forward, names, [source], [result])


def _backward(encoder: nn.Module, x: Tensor, z: Tensor) -> onnx.ModelProto:
    names, call = _functional(encoder)

    def backward(value: Tensor, dz: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return _gradients("encoder", names, call(value, parameters), parameters, dz)

    outputs = [f"grad.{name}" for name in names]
    return _export(encoder, "encoder", backward, names, [("x", x), ("dz", z)], outputs)


def _step(model: MultiTaskModel, task: str, z: Tensor) -> onnx.ModelProto:
    head, part = model.heads[task], f"head.{task}"
    names, call = _functional(head)

    def step(value: Tensor, target: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        loss = model.losses[task](call(value, parameters), target)
        return loss, *_gradients(part, ["", *names], loss, (value, *parameters))

    outputs = ["loss", "dz", *(f"grad.{name}" for name in names)]
    sources = [("z", z.detach().requires_grad_()), ("target", model.example_targets[task])]
    return _export(head, part, step, names, sources, outputs)


def _loss(model: MultiTaskModel, task: str, z: Tensor) -> onnx.ModelProto:
    head, part = model.heads[task], f"head.{task}"
    names, call = _functional(head)

    def loss(value: Tensor, target: Tensor, *parameters: Tensor) -> tuple[Tensor]:
        return (model.losses[task](call(value, parameters), target),)

    return _export(head, part, loss, names, [("z", z), ("target", model.example_targets[task])], ["loss"])


def _functional(module: nn.Module) -> tuple[list[str], Callable[[Tensor, Sequence[Tensor]], Tensor]]:
    """A module's parameter names in order, and the module as a function of its input and its parameters."""
    names = sorted(name for name, _ in module.named_parameters())

    def call(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (value,))
        return result

    return names, call


def _gradients(
    part: str, names: Sequence[str], value: Tensor, inputs: Sequence[Tensor], weight: Tensor | None = None
) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(value, inputs, weight, allow_unused=True)
    for name, gradient in zip(names, found, strict=True):
        if gradient is None:
            what = f"parameter {part}.{name}" if name else f"the representation, in {part},"
            raise ModelInvalid(f"{what} gets no gradient: it has no effect on the loss")
    return tuple(g for g in found if g is not None)


def _export(
    module: nn.Module,
    part: str,
    function: Callable[..., Any],
    names: Sequence[str],
    sources: Sequence[tuple[str, Tensor]],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    parameters = dict(module.named_parameters())

    def inputs(batch: int) -> list[Tensor]:
        batched = [
            torch.zeros((batch, *tensor.shape[1:]), dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for _, tensor in sources
        ]
        return [*batched, *(parameters[name] for name in names)]

    root = nn.ModuleDict({part.replace(".", "/"): module})
    traced = trace(function, inputs, root)
    return lower(traced, inputs=[*(name for name, _ in sources), *(f"param.{n}" for n in names)], outputs=outputs)
