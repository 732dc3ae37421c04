"""A multi-task model on the engine: its graphs, bound to flat vectors of parameters, state and gradients.

Shapes: B samples, T tasks. The encoder maps x (B, …) to the representation, one or more arrays z (B, …); each head's
step maps them and a target to a loss, ∂L/∂z and the gradients of its own parameters. Where the model has a stem, that
comes before the encoder and is trained with it. The graphs write into views of
`gradient`; nothing is copied but the state, where it moves.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Array, Batch, EncoderBackend, LocalEncoder, Pass, Representation
from edge_runtime.training.engine import Engine, Graph
from edge_runtime.training.stem import Stem
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.operators import check_graph_file
from edge_runtime.wire.tensors import STATE, TensorTable, Vector, part_of

Weights = NDArray[np.float64]
"""How much each task's loss counts, (T,)."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Targets (R, …) of those rows (R,) of a batch that have a label; the others count for nothing."""

    rows: NDArray[np.int64]
    target: Array


Target = Array | Labelled
Targets = Mapping[str, Target]
Losses = dict[str, float]
OnTaskGradient = Callable[[str, float, Representation], None]
"""Called with a task, its loss and ∂L_i/∂z, which the next task overwrites; no loss (NaN) where nothing is labelled."""
CombineGradients = Callable[[list[Representation]], Representation]
"""From the tasks' w_i · ∂L_i/∂z to what takes the place of their sum; it may use up its arguments."""


class TrainingStep(Protocol):
    """A seam: another engine's whole step."""

    def __call__(
        self,
        x: Batch,
        targets: Mapping[str, Array],
        *,
        weights: Vector,
        gradient: Vector,
        moved: Vector,
        seeds: Mapping[str, Array],
        loss_weights: Weights | None,
    ) -> Losses:
        """The losses by task, all gradients into `gradient` (P,), and what the state becomes into `moved` (D,).

        `seeds` are by part; loss weights (T,) are 1 where none are given.
        """


class Model:
    """The graphs of a manifest and one vector of parameters and state, changed in place as training goes on.

    `gradient` (P,) is as long as the parameters, which are the front of `weights` (D,).
    """

    def __init__(
        self,
        manifest: Manifest,
        graph: Callable[[str], Graph],
        weights: Vector,
        whole: TrainingStep | None = None,
        keep: Sequence[bool] = (),
        frozen: int = 0,
        encoder: EncoderBackend | None = None,
    ) -> None:
        """`graph` gives a loaded graph by its name when it is first needed; `weights` (D,) is copied.

        `whole` computes what `learn` needs in one run; without it the parts' graphs do. `keep` says which stages of the
        encoder keep their activations for the backward pass; the others recompute them. The first `frozen` stages are
        not trained: they have no gradient, and nor has a stem before them. With `encoder`, that computes the encoder,
        of which the manifest's table has nothing then.
        """
        self.manifest = manifest
        self.tasks = manifest.task_names
        self.table = manifest.table
        self.table.check(weights)
        self.weights = np.array(weights)
        self.gradient = np.zeros(self.table.parameters.size, np.float32)
        self._moved = np.zeros(len(self.weights), np.float32)  # only the state of it is ever touched, and so in memory
        self._inputs = named(self.table, self.weights, "param")
        self._outputs = named(self.table.parameters, self.gradient, "grad")
        self._next = named(self.table, self._moved, "param")
        for arrays in (self._inputs, self._outputs, self._next):
            arrays.setdefault("encoder", {})
        self._graph = graph
        self._whole = whole
        self._encoder: EncoderBackend = encoder or LocalEncoder(manifest, graph, keep, frozen)
        self._stem = None if manifest.embedding is None else Stem(manifest.embedding, graph)
        still = {f"encoder.{name}" for stage in manifest.stages[:frozen] for name in stage.parameters}
        still |= {tensor.name for tensor in manifest.tensors if frozen and tensor.part == "stem"}
        self.trained = _ranges(self.table.parameters, still)
        """Where the trained parameters are in the vectors, in order."""
        self.trains_encoder = encoder is not None or frozen < len(manifest.stages)
        self.reseed(0, 0, 0)

    @property
    def encoder(self) -> slice:
        """Where the encoder's parameters are in the vectors; nowhere, if it is computed elsewhere."""
        return self.table.parts.get("encoder", slice(0, 0))

    @property
    def in_flight(self) -> int:
        """How many forward passes may be begun before the first of them goes back."""
        return self._encoder.in_flight

    @property
    def heads_at(self) -> slice:
        """Where the parameters of all heads are in the vectors: between those of encoder and stem."""
        heads = [where for part, where in self.table.parts.items() if part.startswith("head.")]
        return slice(heads[0].start, heads[-1].stop)

    @property
    def parameters(self) -> Vector:
        """The parameters, a view of `weights` as long as `gradient`."""
        return self.weights[: len(self.gradient)]

    def begin_round(self, step: int = 0) -> None:
        """A round begins, or goes on, with an optimizer's step; whoever computes the encoder is told, here and below.

        Raises HostUnavailable, as all that needs an encoder that is computed elsewhere.
        """
        self._encoder.begin_round(step)

    def mark_checkpoint(self) -> None:
        """All steps so far are in a checkpoint."""
        self._encoder.mark_checkpoint()

    def finish_round(self) -> None:
        """The round's training or measuring is done."""
        self._encoder.finish_round()

    def learn(
        self,
        x: Batch,
        targets: Targets,
        weights: Weights | None = None,
        keep: OnTaskGradient | None = None,
        merge: CombineGradients | None = None,
    ) -> Losses:
        """The losses by task, with all gradients of Σ w_i · L_i in `gradient`; see `heads`."""
        labelled = not any(isinstance(target, Labelled) for target in targets.values())
        if self._whole is not None and keep is None and merge is None and labelled:
            losses = self._whole(
                x,
                cast("Mapping[str, Array]", targets),
                weights=self.weights,
                gradient=self.gradient,
                moved=self._moved,
                seeds={part: inputs["seed"] for part, inputs in self._inputs.items()},
                loss_weights=weights,
            )
            for part in self._inputs:
                self._move(part)
            return losses
        done = self.forward(x)
        losses, total = self.heads(done.z, targets, weights, keep, merge)
        self.backward(done, total, release=True)
        return losses

    def heads(
        self,
        z: Representation,
        targets: Targets,
        weights: Weights | None = None,
        keep: OnTaskGradient | None = None,
        merge: CombineGradients | None = None,
    ) -> tuple[Losses, Representation]:
        """Every head's step in turn: the losses by task, and what the encoder receives, Σ w_i · ∂L_i/∂z · 1/√T.

        A head's own gradients are of w_i · L_i. Losses, and what `keep` is shown, are without the weights; `weights`
        are 1 where none are given. With `merge`, the gradients of all tasks are held and merged by it instead of added.
        """
        total = tuple(map(np.zeros_like, z)) if merge is None else ()
        dz = tuple(map(np.empty_like, z))
        held: list[Representation] = []  # w_i · ∂L_i/∂z of the tasks so far, where they are merged
        losses: dict[str, float] = {}
        for i, task in enumerate(self.tasks):
            if held:
                dz = tuple(map(np.empty_like, z))
            losses[task] = self.step(task, z, targets[task], dz)
            if keep is not None:
                keep(task, losses[task], dz)
            if weights is not None and weights[i] != 1:
                for array in (*dz, self.gradient[self.table.parts[f"head.{task}"]]):
                    np.multiply(array, np.float32(weights[i]), out=array)
            if merge is not None:
                held.append(dz)
                continue
            for summed, part in zip(total, dz, strict=True):
                np.add(summed, part, out=summed)
        if merge is not None:
            total = merge(held)
        for summed in total:
            np.multiply(summed, np.float32(1 / np.sqrt(len(self.tasks))), out=summed)
        return losses, total

    def reseed(self, *numbers: int) -> None:
        """What is random in training from now on, in every part another: a pure function of these numbers."""
        parts = ("encoder", *(f"head.{task}" for task in self.tasks), *(("stem",) if self._stem else ()))
        drawn = np.random.SeedSequence(numbers).generate_state(len(parts))
        for part, value in zip(parts, drawn, strict=True):
            self._inputs[part]["seed"] = np.array(value, np.int64)
        self._encoder.set_place(*numbers)

    def forward(self, x: Batch) -> Pass:
        """The forward pass up to the representation in training mode; moves the encoder's state."""
        done = self._encoder.forward(self._embed(x), self._inputs["encoder"], self._next_state("encoder"))
        self._move("encoder")
        return done

    def look_ahead(self, done: Pass, encoder: Vector) -> Representation:
        """The representation z of a pass in training mode, had the encoder other parameters; nothing moves.

        `encoder` is the encoder's part of a vector of parameters.
        """
        inputs = self._inputs["encoder"] | named(self.table.select(["encoder"]), encoder, "param")["encoder"]
        return self._encoder.forward(done.given, inputs, self._next_state("encoder"), backward=False).z

    def encode(self, x: Batch) -> Representation:
        """The representation z in evaluation mode."""
        given = {"x": x} if self._stem is None else {"e": self._stem.predict(x, self._inputs["stem"])}
        return self._encoder.predict(given, self._inputs["encoder"])

    def step(self, task: str, z: Representation, target: Target, dz: Representation) -> float:
        """One head's loss; ∂L/∂z goes to `dz`, the head's gradients to `gradient`; moves the head's state.

        Where nothing is labelled the loss is NaN, the gradients are zero and the state stays.
        """
        if isinstance(target, Labelled):
            return self._step_some(task, z, target, dz)
        loss = np.empty((), np.float32)
        part = f"head.{task}"
        inputs = {"target": target, **numbered("z", z), **self._inputs[part]}
        outputs = {"loss": loss, **numbered("dz", dz), **self._outputs[part], **self._next_state(part)}
        self._graph(f"{part}.step").run(inputs, outputs)
        self._move(part)
        return float(loss)

    def _step_some(self, task: str, z: Representation, labelled: Labelled, dz: Representation) -> float:
        for array in dz:
            array.fill(0)
        if not len(labelled.rows):
            self.gradient[self.table.parts[f"head.{task}"]] = 0
            return float("nan")
        chosen = tuple(array[labelled.rows] for array in z)
        parts = tuple(map(np.empty_like, chosen))
        loss = self.step(task, chosen, labelled.target, parts)
        for array, part in zip(dz, parts, strict=True):
            array[labelled.rows] = part
        return loss

    def loss(self, task: str, z: Representation, target: Target) -> float:
        """One head's loss alone, in training mode, NaN where nothing is labelled; nothing moves."""
        return self._loss(task, "loss", z, target)

    def evaluate(self, task: str, z: Representation, target: Target) -> float:
        """One head's loss in evaluation mode, NaN where nothing is labelled."""
        return self._loss(task, "evaluate", z, target)

    def predict(self, task: str, z: Representation) -> Batch:
        """One head's prediction (B, …), in evaluation mode."""
        prediction = np.empty((len(z[0]), *self.manifest.task(task).prediction.shape), np.float32)
        inputs = {**numbered("z", z), **self._inputs[f"head.{task}"]}
        self._graph(f"head.{task}.predict").run(inputs, {"prediction": prediction})
        return prediction

    def backward(self, done: Pass, dz: Representation, *, release: bool = False, stem: bool = True) -> Vector:
        """The encoder's gradient for ∂L/∂z, written to `gradient`; returns that part of it, a view. Nothing moves.

        The gradient of a stem is written there as well, unless `stem` is false. With `release` the pass is used up, and
        its memory free for what follows.
        """
        finish = self.send_back(done, dz, release=release)
        if stem:
            finish()
        return self.gradient[self.encoder]

    def send_back(self, done: Pass, dz: Representation, *, release: bool = False) -> Callable[[], None]:
        """`backward` in two: what it returns waits for ∂L/∂e, and writes the gradient of the stem.

        What is random must then be of the pass again; see `reseed`.
        """
        arrive = self._encoder.backward(done, dz, self._inputs["encoder"], self._outputs["encoder"], release=release)

        def finish() -> None:
            if self._stem is not None and (de := arrive()) is not None:
                self._stem.backward(done.values["x"], de, self._inputs["stem"], self._outputs["stem"])

        return finish

    def _loss(self, task: str, kind: str, z: Representation, target: Target) -> float:
        if isinstance(target, Labelled):
            if not len(target.rows):
                return float("nan")
            return self._loss(task, kind, tuple(array[target.rows] for array in z), target.target)
        loss = np.empty((), np.float32)
        inputs = {"target": target, **numbered("z", z), **self._inputs[f"head.{task}"]}
        self._graph(f"head.{task}.{kind}").run(inputs, {"loss": loss})
        return float(loss)

    def _embed(self, x: Batch) -> dict[str, Array]:
        """What the encoder is given in training mode; x is there in any case."""
        return {"x": x} if self._stem is None else {"x": x, "e": self._stem.forward(x, self._inputs["stem"])}

    def _next_state(self, part: str) -> dict[str, Array]:
        state = self._next[part].items()
        return {f"next.{name.removeprefix(STATE)}": view for name, view in state if name.startswith(STATE)}

    def _move(self, part: str) -> None:
        if where := self.table.parts.get(f"{STATE}{part}"):
            self.weights[where] = self._moved[where]


def _ranges(table: TensorTable, left_out: Collection[str]) -> tuple[slice, ...]:
    """The parts of a vector without some tensors, as few as there are."""
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


def numbered(name: str, arrays: Sequence[Array]) -> dict[str, Array]:
    """The arrays of a representation under the names that the graphs give them."""
    return {f"{name}.{i}": array for i, array in enumerate(arrays)}


def named(table: TensorTable, vector: Vector, kind: str) -> dict[str, dict[str, Array]]:
    """Views of a vector by part, under the names that the graphs give them; a part's state is with the part."""
    named: dict[str, dict[str, Array]] = {}
    for name, view in table.views(vector).items():
        part = part_of(name)
        owner = part.removeprefix(STATE)
        prefix = kind if owner == part else STATE.rstrip(".")
        named.setdefault(owner, {})[f"{prefix}.{name.removeprefix(f'{part}.')}"] = view
    return named


class GraphCache:
    """Loaded graphs by the digest of their file, so that rounds and groups that share a graph load it once.

    None of a manifest's graphs is loaded before all have been held to what a bundle may have.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._graphs: dict[str, Graph] = {}
        self._checked: set[str] = set()

    def of(self, manifest: Manifest, locate: Callable[[str, str], Path]) -> Callable[[str], Graph]:
        """A manifest's graphs by name. `locate` gives the file of a graph's name and digest.

        What the manifest does not name is unloaded. Raises BundleInvalid, and the result EngineError.
        """
        named = {name: file.digest for name, file in manifest.graphs.items()}
        for name, digest in named.items():
            if digest not in self._checked:
                check_graph_file(locate(name, digest), name)
                self._checked.add(digest)
        self._checked.intersection_update(named.values())
        self._graphs = {digest: graph for digest, graph in self._graphs.items() if digest in named.values()}

        def graph(name: str) -> Graph:
            digest = named[name]
            if digest not in self._graphs:
                self._graphs[digest] = self._engine.load(locate(name, digest))
            return self._graphs[digest]

        return graph
