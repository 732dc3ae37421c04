"""A multi-task model on the engine: its graphs, bound to flat vectors of parameters, state and gradients.

Shapes: B samples, T tasks. The encoder maps the inputs x (B, …), by name, to the representation, one or more arrays
z (B, …). Each head's step maps them and a target to a loss, ∂L/∂z and the gradients of its own parameters. A stem, if
there is one, comes before the encoder and is trained with it. The graphs write into views of `gradient`; only changed
state is copied. Fixed tensors are read where their files are mapped, and are in no vector.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Array, Batch, EncoderBackend, Inputs, LocalEncoder, Pass, Representation
from edge_runtime.training.graph_arrays import named, numbered
from edge_runtime.training.graph_cache import Graphs
from edge_runtime.training.stem import Stem
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.tensors import STATE, TensorTable, Vector

Weights = NDArray[np.float64]
"""The weight of each task's loss, (T,)."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Targets (R, …) of the rows (R,) of a batch that have a label; other rows add nothing to loss and gradients."""

    rows: NDArray[np.int64]
    target: Array


Target = Array | Labelled
Targets = Mapping[str, Target]
Losses = dict[str, float]
OnTaskGradient = Callable[[str, float, Representation], None]
"""Called with a task, its loss and ∂L_i/∂z, which the next task overwrites; no loss (NaN) where nothing is labelled."""
CombineGradients = Callable[[list[Representation]], Representation]
"""Takes the tasks' w_i · ∂L_i/∂z, which it may overwrite, and returns the gradient to use instead of their sum."""


class TrainingStep(Protocol):
    """A seam: another engine that computes a step in one run."""

    def __call__(
        self,
        x: Inputs,
        targets: Mapping[str, Array],
        *,
        weights: Vector,
        gradient: Vector,
        next_state: Vector,
        seeds: Mapping[str, Array],
        loss_weights: Weights | None,
    ) -> Losses:
        """Return the losses by task; write all gradients to `gradient` (P,) and the next state to `next_state` (D,).

        `seeds` are by part; loss weights (T,) are 1 by default.
        """


class Model:
    """The graphs of a manifest and one vector of parameters and state, changed in place as training goes on.

    `gradient` (P,) is as long as the parameters, which are the front of `weights` (D,).
    """

    def __init__(
        self,
        manifest: Manifest,
        graph: Graphs,
        weights: Vector,
        training_step: TrainingStep | None = None,
        save_activations: Sequence[bool] = (),
        frozen: int = 0,
        encoder: EncoderBackend | None = None,
    ) -> None:
        """`graph` returns a loaded graph by its name; `weights` (D,) are copied.

        With `training_step`, `learn` is one run of it instead of the parts' graphs. `save_activations` is true for the
        stages that save them for the backward pass; the others recompute them. The first `frozen` stages are not
        trained: neither they nor a stem before them have a gradient. `encoder` computes the encoder elsewhere; the
        manifest's table then has nothing of it.
        """
        self.manifest = manifest
        self.tasks = manifest.task_names
        self.table = manifest.table
        self.table.check(weights)
        self.weights = np.array(weights)
        self.gradient = np.zeros(self.table.parameters.size, np.float32)
        self._next_state_values = np.zeros(
            len(self.weights), np.float32
        )  # only its state part is touched, and so in memory
        self._inputs = named(self.table, self.weights, "param")
        self._outputs = named(self.table.parameters, self.gradient, "grad")
        self._next = named(self.table, self._next_state_values, "param")
        self._parts = ("encoder", *(f"head.{task}" for task in self.tasks), *(("stem",) if manifest.embedding else ()))
        for arrays in (self._inputs, self._outputs, self._next):
            for part in self._parts:
                arrays.setdefault(part, {})
        for part, tensors in (graph.fixed if manifest.fixed else {}).items():
            self._inputs[part] |= tensors
        self._graph = graph
        self._training_step = training_step
        self._encoder: EncoderBackend = encoder or LocalEncoder(manifest, graph, save_activations, frozen)
        self._stem = None if manifest.embedding is None else Stem(manifest.embedding, graph)
        still = {f"encoder.{name}" for stage in manifest.stages[:frozen] for name in stage.parameters}
        still |= {tensor.name for tensor in manifest.tensors if frozen and tensor.part == "stem"}
        self._still = still
        self.trained = _ranges(self.table.parameters, still)
        """The ranges of the trained parameters in the vectors, in order."""
        self.trains_encoder = encoder is not None or any(stage.parameters for stage in manifest.stages[frozen:])
        self.reseed(0, 0, 0)

    @property
    def encoder(self) -> slice:
        """The range of the encoder's parameters in the vectors; empty if it is computed elsewhere."""
        return self.table.where("encoder")

    @property
    def in_flight(self) -> int:
        """The number of forward passes that may begin before the first one's backward pass."""
        return self._encoder.in_flight

    @property
    def heads_range(self) -> slice:
        """The range of all heads' parameters in the vectors, between those of encoder and stem."""
        heads = [where for part, where in self.table.parts.items() if part.startswith("head.")]
        return slice(heads[0].start, heads[-1].stop) if heads else slice(0, 0)

    @property
    def parameters(self) -> Vector:
        """The parameters, a view of `weights` as long as `gradient`."""
        return self.weights[: len(self.gradient)]

    def trained_in(self, parts: Collection[str]) -> tuple[slice, ...]:
        """Return the ranges of the trained parameters of some parts in the vectors, in order."""
        parameters = self.table.parameters
        others = {tensor.name for tensor in parameters.tensors if tensor.part not in parts}
        return _ranges(parameters, self._still | others)

    def begin_round(self, step: int = 0) -> None:
        """Begin a round, or go on with it, at an optimizer's step.

        Raises EncoderServerUnavailable in split learning, as all calls that need the encoder.
        """
        self._encoder.begin_round(step)

    def mark_checkpoint(self) -> None:
        """Tell the encoder that all steps so far are in a checkpoint."""
        self._encoder.mark_checkpoint()

    def finish_round(self) -> None:
        """End the round."""
        self._encoder.finish_round()

    def learn(
        self,
        x: Inputs,
        targets: Targets,
        weights: Weights | None = None,
        on_task: OnTaskGradient | None = None,
        combine: CombineGradients | None = None,
    ) -> Losses:
        """Compute all gradients of Σ w_i · L_i into `gradient`; return the losses by task. See `run_heads`."""
        labelled = not any(isinstance(target, Labelled) for target in targets.values())
        if self._training_step is not None and on_task is None and combine is None and labelled:
            losses = self._training_step(
                x,
                cast("Mapping[str, Array]", targets),
                weights=self.weights,
                gradient=self.gradient,
                next_state=self._next_state_values,
                seeds={part: inputs["seed"] for part, inputs in self._inputs.items()},
                loss_weights=weights,
            )
            if not any(math.isnan(loss) and self._lacks_labels(task, targets[task]) for task, loss in losses.items()):
                for part in self._inputs:
                    self._update_state(part)
                return losses
        done = self.forward(x)
        losses, total = self.run_heads(done.z, targets, weights, on_task, combine)
        self.backward(done, total, release=True)
        return losses

    def run_heads(
        self,
        z: Representation,
        targets: Targets,
        weights: Weights | None = None,
        on_task: OnTaskGradient | None = None,
        combine: CombineGradients | None = None,
    ) -> tuple[Losses, Representation]:
        """Run every head's step; return the losses by task and the encoder's gradient Σ w_i · ∂L_i/∂z · 1/√T.

        A head's own gradients are of w_i · L_i. The losses, and the arguments of `on_task`, are without the weights;
        `weights` are 1 by default. With `combine`, the gradients of all tasks are held and combined, not added. They
        are zero if nothing before the heads is trained.
        """
        make = np.empty_like if self.manifest.trains_shared else np.zeros_like
        total = tuple(map(np.zeros_like, z)) if combine is None else ()
        dz = tuple(map(make, z))
        held: list[Representation] = []  # w_i · ∂L_i/∂z of the tasks so far, to be combined
        losses: dict[str, float] = {}
        for i, task in enumerate(self.tasks):
            if held:
                dz = tuple(map(make, z))
            losses[task] = self.step(task, z, targets[task], dz)
            if on_task is not None:
                on_task(task, losses[task], dz)
            if weights is not None and weights[i] != 1:
                for array in (*dz, self.gradient[self.table.where(f"head.{task}")]):
                    np.multiply(array, np.float32(weights[i]), out=array)
            if combine is not None:
                held.append(dz)
                continue
            for summed, part in zip(total, dz, strict=True):
                np.add(summed, part, out=summed)
        if combine is not None:
            total = combine(held)
        for summed in total:
            np.multiply(summed, np.float32(1 / np.sqrt(len(self.tasks))), out=summed)
        return losses, total

    def reseed(self, *numbers: int) -> None:
        """Set the seeds of all parts, each another pure function of these numbers."""
        drawn = np.random.SeedSequence(numbers).generate_state(len(self._parts))
        for part, value in zip(self._parts, drawn, strict=True):
            self._inputs[part]["seed"] = np.array(value, np.int64)
        self._encoder.set_place(*numbers)

    def forward(self, x: Inputs) -> Pass:
        """Run the forward pass up to the representation in training mode; update the encoder's state."""
        done = self._encoder.forward(self._embed(x), self._inputs["encoder"], self._next_state("encoder"))
        self._update_state("encoder")
        return done

    def look_ahead(self, done: Pass, encoder: Vector) -> Representation:
        """Repeat a forward pass with other encoder parameters; return the representation z. No state changes.

        `encoder` is the encoder's range of a vector of parameters.
        """
        inputs = self._inputs["encoder"] | named(self.manifest.encoder_table, encoder, "param")["encoder"]
        return self._encoder.forward(done.source, inputs, self._next_state("encoder"), backward=False).z

    def encode(self, x: Inputs) -> Representation:
        """Compute the representation z in evaluation mode."""
        given = x if self._stem is None else {"e": self._stem.predict(x, self._inputs["stem"])}
        return self._encoder.predict(given, self._inputs["encoder"])

    def step(self, task: str, z: Representation, target: Target, dz: Representation) -> float:
        """Run one head's step: ∂L/∂z to `dz`, its gradients to `gradient`, its state updated; return the loss.

        If no row is labelled, the loss is NaN, the gradients are zero and the state stays. If there are labels, and all
        of them are ignored, a loss that PyTorch defines as 0 / 0 is 0, as the gradients are.
        """
        if isinstance(target, Labelled):
            return self._step_some(task, z, target, dz)
        loss = np.empty((), np.float32)
        part = f"head.{task}"
        inputs = {"target": target, **numbered("z", z), **self._inputs[part]}
        outputs = {"loss": loss, **numbered("dz", dz), **self._outputs[part], **self._next_state(part)}
        self._graph(f"{part}.step").run(inputs, outputs)
        self._update_state(part)
        return self._defined(task, float(loss), target)

    def _defined(self, task: str, loss: float, target: Array) -> float:
        return 0.0 if math.isnan(loss) and self._lacks_labels(task, target) else loss

    def _lacks_labels(self, task: str, target: Target) -> bool:
        """Return whether a batch has labels of a task, and its loss ignores all of them."""
        ignored = self.manifest.task(task).unlabelled
        return bool(ignored) and not isinstance(target, Labelled) and bool(np.isin(target, ignored).all())

    def _step_some(self, task: str, z: Representation, labelled: Labelled, dz: Representation) -> float:
        for array in dz:
            array.fill(0)
        if not len(labelled.rows):
            self.gradient[self.table.where(f"head.{task}")] = 0
            return float("nan")
        chosen = tuple(array[labelled.rows] for array in z)
        parts = tuple(map(np.empty_like, chosen))
        loss = self.step(task, chosen, labelled.target, parts)
        for array, part in zip(dz, parts, strict=True):
            array[labelled.rows] = part
        return loss

    def loss(self, task: str, z: Representation, target: Target) -> float:
        """Compute one head's loss in training mode, NaN if no row is labelled. No state changes."""
        return self._loss(task, "loss", z, target)

    def evaluate(self, task: str, z: Representation, target: Target) -> float:
        """Compute one head's loss in evaluation mode, NaN if no row is labelled."""
        return self._loss(task, "evaluate", z, target)

    def predict(self, task: str, z: Representation) -> dict[str, Batch]:
        """Compute one head's predictions (B, …) in evaluation mode, by their names in graphs."""
        arrays = self.manifest.task(task).outputs.items()
        predictions = {name: np.empty((len(z[0]), *array.shape), np.float32) for name, array in arrays}
        inputs = {**numbered("z", z), **self._inputs[f"head.{task}"]}
        self._graph(f"head.{task}.predict").run(inputs, predictions)
        return predictions

    def backward(self, done: Pass, dz: Representation, *, release: bool = False, stem: bool = True) -> Vector:
        """Write the encoder's gradient for ∂L/∂z to `gradient`; return a view of that range. No state changes.

        The gradient of a stem is written there as well, unless `stem` is false. With `release` the memory of the pass
        is freed, and it has no second backward pass.
        """
        finish = self.start_backward(done, dz, release=release)
        if stem:
            finish()
        return self.gradient[self.encoder]

    def start_backward(self, done: Pass, dz: Representation, *, release: bool = False) -> Callable[[], None]:
        """Start a backward pass; the returned function waits for ∂L/∂e and writes the gradient of the stem.

        Call `reseed` with the numbers of the pass before that function.
        """
        wait = self._encoder.backward(done, dz, self._inputs["encoder"], self._outputs["encoder"], release=release)

        def finish() -> None:
            de = wait()
            if self._stem is not None and de is not None and "stem" in self.table.parts:
                self._stem.backward(done.inputs, de, self._inputs["stem"], self._outputs["stem"])

        return finish

    def _loss(self, task: str, kind: str, z: Representation, target: Target) -> float:
        if isinstance(target, Labelled):
            if not len(target.rows):
                return float("nan")
            return self._loss(task, kind, tuple(array[target.rows] for array in z), target.target)
        loss = np.empty((), np.float32)
        inputs = {"target": target, **numbered("z", z), **self._inputs[f"head.{task}"]}
        self._graph(f"head.{task}.{kind}").run(inputs, {"loss": loss})
        return self._defined(task, float(loss), target)

    def _embed(self, x: Inputs) -> Inputs:
        """Return what the encoder starts from in training mode, and the inputs in any case."""
        return x if self._stem is None else {**x, "e": self._stem.forward(x, self._inputs["stem"])}

    def _next_state(self, part: str) -> dict[str, Array]:
        state = self._next[part].items()
        return {f"next.{name.removeprefix(STATE)}": view for name, view in state if name.startswith(STATE)}

    def _update_state(self, part: str) -> None:
        if where := self.table.parts.get(f"{STATE}{part}"):
            self.weights[where] = self._next_state_values[where]


def _ranges(table: TensorTable, left_out: Collection[str]) -> tuple[slice, ...]:
    """Return the ranges of a vector without some tensors, as few as possible."""
    ranges: list[slice] = []
    for tensor in table.tensors:
        if tensor.name in left_out:
            continue
        end = tensor.offset + tensor.size
        if ranges and ranges[-1].stop == tensor.offset:
            ranges[-1] = slice(ranges[-1].start, end)
        else:
            ranges.append(slice(tensor.offset, end))
    return tuple(ranges)
