"""The graphs of a multi-task model: stem and encoder forward and backward, a step for each head, and evaluation.

PyTorch's autograd differentiates the model while it is traced (export.trace); the operators of both directions are then
translated (export.lowering). Graph names, inputs and outputs are those of edge_runtime.wire.graph_names.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge_runtime import __version__
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.graph_names import input_of
from edge_runtime.wire.operators import OPSET, check_graph
from edge_runtime.wire.tensors import STATE, TensorTable, Vector, pack, part_of
from export.contract import check
from export.encoder import StagedEncoder
from export.errors import ModelInvalid, naming
from export.labels import label_contract
from export.mean_loss import compares_samples
from export.model import MultiTaskModel, embed, numbered, represent
from export.model_part import Lowered, ModelPart, Results, Run, Sources
from export.module_state import unchanged
from export.object_digest import Indescribable, object_digest
from export.prediction import Prediction, by_name, outputs_of
from export.signature import Role

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compiled:
    """A model's graphs as bytes by name, its tensor table, its initial parameters and state as one vector."""

    model: MultiTaskModel
    stages: tuple[wire.Stage, ...]
    values: tuple[wire.Array, ...]
    graphs: dict[str, bytes]
    lowered: dict[str, Lowered]
    """The operators that the graphs were translated from, by the same names."""
    table: TensorTable
    weights: Vector
    fixed: Mapping[str, tuple[TensorTable, Vector]]
    """What training does not change, by part."""

    @property
    def fixed_stages(self) -> int:
        """Return how many of the encoder's first stages have nothing to train, in them or before them."""
        return sum(f"encoder.{k}.backward" not in self.graphs for k in range(len(self.stages)))

    @property
    def trains_shared(self) -> bool:
        """Return whether anything before the heads is trained."""
        return self.fixed_stages < len(self.stages)

    @property
    def looked_up(self) -> dict[str, int]:
        """The number of rows of the tables in which inputs look up, by the inputs' names in graphs."""
        return _looked_up(self.lowered["encoder.predict"]) | (
            _looked_up(self.lowered["stem.predict"]) if "stem.predict" in self.lowered else {}
        )

    @property
    def files(self) -> dict[str, bytes]:
        """The bundle's files by the manifest's names, without the weights."""
        return self.graphs | {
            f"{wire.FIXED}.{part}": pack(table, vector) for part, (table, vector) in self.fixed.items()
        }

    @property
    def unreached(self) -> tuple[str, ...]:
        """The fixed parameters that build() did not freeze: no gradient reaches them."""
        wanted = {
            f"{part}.{name}"
            for part, module in self.model.parts().items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        return tuple(sorted(wanted & self.fixed_tensors.keys()))

    @property
    def fixed_tensors(self) -> dict[str, Vector]:
        """What training does not change, by the names in tables."""
        return {name: view for table, vector in self.fixed.values() for name, view in table.views(vector).items()}

    @property
    def tensors(self) -> dict[str, Vector]:
        """All tensors, of whatever kind, by their names in tables."""
        return self.table.views(self.weights) | self.fixed_tensors


def compile_model(
    model: MultiTaskModel, progress: Progress = lambda *_: None, *, stages: int | None = None
) -> Compiled:
    """Differentiate and translate a model. `progress(part, done, total)` is called for each part.

    The encoder is cut into at most `stages`; with None, into as many as keep its peak low. Raises ModelInvalid or
    OperatorUnsupported, naming the module, and BundleInvalid for a graph that no device takes.
    """
    check(model)
    with naming("the encoder cannot be compiled"):
        embedding = embed(model)
        sources = model.inputs if embedding is None else {"e": embedding}
        encoder = StagedEncoder(ModelPart("encoder", model.encoder), sources, stages)
        made = {"encoder.predict": encoder.predict()}
    forms: dict[str, dict[str, Lowered]] = {}
    parts = [*(f"encoder.{k}" for k in range(len(encoder.stages))), *(f"head.{task}" for task in model.tasks)]
    parts += [] if model.stem is None else ["stem"]
    for i, part in enumerate(parts):
        progress(part, i, len(parts))
        kind, _, rest = part.partition(".")
        with naming(f"{part} cannot be compiled"):
            if kind == "stem":
                found = _stem(model)
            elif kind == "encoder":
                found = encoder.graphs(int(rest))
            else:
                form = _form(model, rest)
                found = forms[form] = forms.get(form) or _head(model, rest, encoder.is_trained)
        made |= {f"{part}.{name}": graph for name, graph in found.items()}
    progress("", len(parts), len(parts))
    graphs = _serialised(made)
    trained, fixed = _kinds(made, named_tensors(model))
    for task in model.tasks:
        if not encoder.is_trained and not any(part_of(name) == f"head.{task}" for name in trained):
            raise ModelInvalid(f"nothing is trained for {task}: all of the encoder and of head.{task} is fixed")
    table, weights = _as_vector(trained)
    return Compiled(
        model=model,
        stages=tuple(stage.described for stage in encoder.stages),
        values=encoder.values,
        graphs=graphs,
        lowered=made,
        table=table,
        weights=weights,
        fixed={part: _as_vector(tensors) for part, tensors in fixed.items()},
    )


def _serialised(made: Mapping[str, Lowered]) -> dict[str, bytes]:
    """Return the bytes of graphs by name, each content checked once. Raises BundleInvalid."""
    of_model: dict[int, bytes] = {}
    checked: dict[bytes, bytes] = {}
    for name, graph in made.items():
        model = graph.translation.model
        if id(model) not in of_model:
            data = model.SerializeToString(deterministic=True)
            if data not in checked:
                check_graph(data, name)
            of_model[id(model)] = checked.setdefault(data, data)
    return {name: of_model[id(graph.translation.model)] for name, graph in made.items()}


def _kinds(
    graphs: Mapping[str, Lowered], held: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return what graphs train or move, and by part what they only read; tensors that no graph uses are left out."""
    trained: set[str] = set()
    used: set[str] = set()
    for name, graph in graphs.items():
        part = part_of(name)
        for role, prefix in ((Role.PARAMETER_GRADIENT, ""), (Role.NEXT_STATE, STATE)):
            trained.update(f"{prefix}{part}.{own}" for own in role.select(dict.fromkeys(graph.outputs)))
        inputs = dict.fromkeys(value.name for value in graph.translation.model.graph.input)
        for role, prefix in ((Role.PARAMETER, ""), (Role.STATE, STATE)):
            used.update(f"{prefix}{part}.{own}" for own in role.select(inputs))
    fixed: dict[str, dict[str, Tensor]] = {}
    for name in sorted(used - trained):
        fixed.setdefault(part_of(name).removeprefix(STATE), {})[name] = held[name]
    return {name: held[name] for name in trained}, fixed


def _looked_up(graph: Lowered) -> dict[str, int]:
    rows = {step.node: step.shapes[0] for step in graph.trace.inputs}
    names = {step.node: name for step, name in zip(graph.trace.inputs, graph.inputs, strict=True)}
    found: dict[str, int] = {}
    for step in graph.trace.steps:
        if step.target is torch.ops.aten.embedding.default and (name := names.get(step.args[1])):
            count = int((rows.get(step.args[0]) or (0,))[0])  # type: ignore[arg-type]
            found[name] = min(count, found.get(name, count))
    return {name: count for name, count in found.items() if count}


def _as_vector(tensors: Mapping[str, Tensor]) -> tuple[TensorTable, Vector]:
    table = TensorTable.of({name: tuple(value.shape) for name, value in tensors.items()})
    vector = np.empty(table.size, np.float32)
    for name, view in table.views(vector).items():
        view[...] = tensors[name].numpy()
    return table, vector


def named_tensors(model: MultiTaskModel) -> dict[str, Tensor]:
    """All parameters and all state by their names on the wire."""
    found: dict[str, Tensor] = {}
    for part, module in model.parts().items():
        found |= ModelPart(part, module).tensors()
    return found


def describe(compiled: Compiled, name: str, parity: wire.Parity) -> wire.Manifest:
    """Return the manifest of a compiled model."""
    model = compiled.model
    z = represent(model)
    e = embed(model)
    with torch.no_grad(), unchanged(*model.parts().values()):
        predictions = {task: model.heads[task](model.packed(z)) for task in model.tasks}
    tasks = tuple(
        wire.Task(
            name=task,
            target=_array(model.example_targets[task]),
            **_predictions(predictions[task]),
            **model.metric(task, predictions[task])._asdict(),
            labels=label_contract(
                model.losses[task],
                model.example_targets[task],
                predictions[task],
                ignored_class=model.ignored_classes.get(task),
            ),
            whole_batch=compares_samples(model.losses[task], predictions[task], model.example_targets[task]),
        )
        for task in model.tasks
    )
    return wire.Manifest(
        format=2,
        name=name,
        tasks=tasks,
        input=_array(model.inputs["x"]) if "x" in model.inputs else None,
        other_inputs={
            input_of(name): _input(value, compiled.looked_up.get(name))
            for name, value in model.inputs.items()
            if name != "x"
        },
        embedding=None if e is None else _array(e),
        representation=tuple(map(_array, z)),
        values=compiled.values,
        stages=compiled.stages,
        tensors=compiled.table.tensors,
        fixed={
            part: wire.FixedTensors(tensors=table.tensors, file=_file(pack(table, vector)))
            for part, (table, vector) in compiled.fixed.items()
        },
        graphs={graph: _file(data) for graph, data in sorted(compiled.graphs.items())},
        weights=_file(pack(compiled.table, compiled.weights)),
        opset=OPSET,
        parity=parity,
        versions={"mas-edge": __version__, "torch": str(torch.__version__), "onnx": version("onnx")},
    )


def _predictions(prediction: Prediction) -> dict[str, Any]:
    named = {name: _array(value) for name, value in by_name(prediction).items()}
    return {"prediction": named[""]} if "" in named else {"predictions": named}


def _file(data: bytes) -> wire.File:
    return wire.File(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _input(tensor: Tensor, count: int | None) -> wire.Input:
    array = _array(tensor)
    return wire.Input(shape=array.shape, dtype=array.dtype, count=count)


def _array(tensor: Tensor) -> wire.Array:
    spec = {"shape": tuple(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
    return msgspec.convert(spec, wire.Array)


def _stem(model: MultiTaskModel) -> dict[str, Lowered]:
    """Return the stem's graphs by their kinds."""
    assert model.stem is not None
    part, e = ModelPart("stem", model.stem), embed(model)
    assert e is not None

    def step(data: Sources, run: Callable[[Any], Run]) -> Results:
        done = run({name: data[name] for name in model.inputs})
        return {"e": done.result, **done.gradients(part.name, [done.result], [data["de"]])}

    both = part.traced(model.inputs | {"de": e}, step, training=True)
    gradients = both.outputs_of(Role.PARAMETER_GRADIENT)
    both.check_effect(part.name, part.parameters, Role.PARAMETER_GRADIENT.select(dict.fromkeys(gradients)))
    found = {"forward": both.graph(["e"])}
    if both.of_both_modes:
        found["predict"] = found["forward"]
    else:
        evaluated = part.traced(model.inputs, lambda data, run: {"e": run(data).result}, training=False)
        found["predict"] = evaluated.graph()
    return found | ({"backward": both.graph(gradients)} if gradients else {})


def _form(model: MultiTaskModel, task: str) -> str:
    """Return what decides a task's graphs: those of the same form are made once."""
    part, target = ModelPart(f"head.{task}", model.heads[task]), model.example_targets[task]
    decisive = [part.module, model.losses[task], target.dtype, tuple(target.shape[1:])]
    try:
        return object_digest(decisive, varying=[*part.parameters.values(), *part.state.values()])
    except Indescribable:
        return task


def _head(model: MultiTaskModel, task: str, is_encoder_trained: bool) -> dict[str, Lowered]:
    """Return the graphs of a task by their kinds."""
    part = ModelPart(f"head.{task}", model.heads[task])
    head = _Head(model, task, part.name)
    z = numbered("z", represent(model))
    target = {"target": model.example_targets[task]}
    leaves = {name: value.detach().requires_grad_(is_encoder_trained) for name, value in z.items()}
    step = part.traced(leaves | target, head.step, training=True)
    step.check_effect(part.name, part.parameters, Role.PARAMETER_GRADIENT.select(dict.fromkeys(step.outputs)))
    evaluated = step if step.of_both_modes else part.traced(z | target, head.evaluate, training=False)
    predicted = part.traced(z, head.predict, training=False) if head.is_changed_by_loss else evaluated
    loss = step.graph(["loss"])
    return {
        "step": step.graph([name for name in step.outputs if Role.of(name) is not Role.PREDICTION]),
        "loss": loss,
        "evaluate": loss if evaluated is step else evaluated.graph(["loss"]),
        "predict": predicted.graph(predicted.outputs_of(Role.PREDICTION)),
    }


class _Head:
    """The functions of a task's graphs."""

    def __init__(self, model: MultiTaskModel, task: str, part: str) -> None:
        self._model, self._task, self._part = model, task, part
        self.is_changed_by_loss = False
        """Whether the loss works in place on the prediction."""

    def step(self, data: Sources, run: Callable[[Any], Run]) -> Results:
        done, found = self._run(data, run)
        loss = found["loss"]
        leaves = {name: value for name, value in Role.VALUE.select(data).items() if value.requires_grad}
        gradients = done.gradients(self._part, [loss], None, leaves)
        if leaves and not Role.VALUE_GRADIENT.select(gradients):
            raise ModelInvalid(f"the representation, in {self._part}, gets no gradient: it has no effect on the loss")
        # A head that passes over one array of the representation gives zeros for it.
        zeros = {Role.VALUE_GRADIENT.tensor_name(name): torch.zeros_like(leaf) for name, leaf in leaves.items()}
        return {**found, **zeros, **gradients, **done.next_state()}

    def evaluate(self, data: Sources, run: Callable[[Any], Run]) -> Results:
        _, found = self._run(data, run)
        return found

    def predict(self, data: Sources, run: Callable[[Any], Run]) -> Results:
        return outputs_of(run(self._value(data)).result)

    def _run(self, data: Sources, run: Callable[[Any], Run]) -> tuple[Run, Results]:
        """Return the module's run, and loss and predictions as outputs."""
        done = run(self._value(data))
        found = outputs_of(done.result)
        versions = [value._version for value in found.values()]  # noqa: SLF001 - how often each was changed in place
        loss = self._model.losses[self._task](done.result, data["target"])
        self.is_changed_by_loss |= versions != [value._version for value in found.values()]  # noqa: SLF001
        return done, {"loss": loss, **found}

    def _value(self, data: Sources) -> Any:
        return self._model.packed(tuple(Role.VALUE.select(data).values()))
