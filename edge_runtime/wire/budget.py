"""Plans to train a bundle in a given amount of memory: the memory of a plan, and the fastest plan that fits.

A plan has three means. Micro-batches: the gradients of a batch are summed over several runs. Activation checkpointing:
a stage of the encoder recomputes its forward pass instead of saving its activations. Freezing: the first stages are not
trained, so they have no backward pass. They are used in this order, because the first costs a little time, the second
up to a third of it, and the third changes the result.

The peak of a training process's resident memory is the sum of

- the memory before the first graph is loaded (measured by the device itself);
- the engine and its sessions, which grow with the nodes of their graphs;
- the vectors: weights, state that moves, gradient, the optimizer's state, and what is fixed, once;
- the arrays that the step holds: the batch, the values between stages and their gradients;
- what a probe adds while it lasts: a copy of every task's ∂L/∂z, and by the method used the encoder's parameters or
  every task's gradient of them, the sessions of the graphs that it alone runs, and the arena with nothing given up;
- in place of vectors and arrays, if that is more: the weights and what writing the update takes, when all is trained;
- the engine's arena: what kept stages have saved, and what the running graph takes. It does not give back what it has
  taken once, and keeps a table of its chunks. The prediction is for an arena that begins with `arena_bytes`, which is
  what an engine for this plan is started with.

The sizes of arrays and graphs are exact or worked out by the exporter, ENGINE_BYTES and NODE_BYTES are measured with
onnxruntime 1.31 on x86-64.
"""

# coverage: every branch

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from edge_runtime.wire.compression import Updates, working_bytes
from edge_runtime.wire.errors import BudgetTooSmall, BundleInvalid
from edge_runtime.wire.footprint import Footprint, GraphFootprint
from edge_runtime.wire.graph_names import value_of
from edge_runtime.wire.manifest import Array, Manifest, Stage
from edge_runtime.wire.training import ProbeMethod

ENGINE_BYTES = 13_000_000
"""The first session and its first run: onnxruntime's code and tables, and the threads."""
NODE_BYTES = 5_000
"""A node of a loaded graph."""
TABLE_SHARE = 32
"""The arena's table is a 32nd part of the arena: 8 bytes for each 256."""
SLACK = 1.05
MIB = 1024**2
FREE_CHOICE = 8
"""Up to this number of stages any of them may save activations; of more stages only the last ones do."""
GRAM_BLOCK = 16_384
"""Elements of every task's gradient that are multiplied at once, as float64."""
COPIES = 6
"""Copies of the traffic with the encoder server in memory: arrays, message, fragments and the link's buffers."""
MARGIN = 0.9
"""The part of a budget that a plan may fill by prediction, which is within a tenth of what is measured."""
ELEMENT_BYTES = {"float32": 4, "int64": 8}


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A way to train: samples in a run, the stages that save their activations, the number of first stages frozen."""

    micro_batch: int
    saved: tuple[bool, ...]
    frozen: int = 0

    def __str__(self) -> str:
        """Return the plan in words."""
        kept = sum(self.saved)
        return (
            f"micro-batches of {self.micro_batch}, {kept} of {len(self.saved)} stages kept, "
            f"{len(self.saved) - self.frozen - kept} recomputed, {self.frozen} frozen"
        )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The demands of training on memory, besides the bundle."""

    batch: int
    """Samples in a step."""
    base_bytes: int
    """Resident before the first graph is loaded."""
    state_vectors: int = 1
    """Vectors as long as the parameters, besides weights and gradient: 1 for momentum, 2 for AdamW, 1 for FedProx."""
    merges: bool = False
    """Conflicting gradients are combined: then ∂L_i/∂z of every task is held while the heads run."""
    evaluates: bool = True
    """Losses are also measured in evaluation mode, in micro-batches as well."""
    predicts: bool = False
    """Predictions are made where losses are measured, for metrics: of a few samples at a time."""
    probe: ProbeMethod | None = None
    """The method of probing affinities, None without probes."""
    update: Updates | None = None
    """The encoding of the update, None if none is written."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The bytes of a plan at its peak, by use."""

    base: int
    sessions: int
    vectors: int
    arrays: int
    saved: int
    transient: int
    update: int = 0
    """After training, in place of vectors and arrays: the weights and the memory to write the update."""

    @property
    def arena_bytes(self) -> int:
        """The initial size of the engine's arena, in whole MiB: a little more, because saved values leave gaps."""
        return -(-int((self.saved + self.transient) * SLACK) // MIB) * MIB

    @property
    def table(self) -> int:
        """The arena's table of its chunks."""
        return self.arena_bytes // TABLE_SHARE

    @property
    def peak(self) -> int:
        """The peak of resident memory."""
        ours = max(self.vectors + self.arrays, self.update)
        return self.base + self.sessions + ours + self.saved + self.transient + self.table


def predict(manifest: Manifest, plan: MemoryPlan, work: Workload) -> Prediction:
    """Predict the peak of resident memory of training by a plan. Raises BundleInvalid without a footprint.

    Stages in which and before which nothing is trained count as frozen.
    """
    return _Model(manifest, work).predict(replace(plan, frozen=max(plan.frozen, manifest.fixed_stages)))


def choose(manifest: Manifest, budget_bytes: int, work: Workload, *, most_frozen: int | None = None) -> MemoryPlan:
    """Return the first plan that fits, in the order of `plans`; at most `most_frozen` stages are frozen (None: all).

    Raises BudgetTooSmall, which says what would fit, and BundleInvalid for a bundle without footprint.
    """
    model = _Model(manifest, work)
    best: tuple[int, MemoryPlan] | None = None
    for plan in plans(manifest, work.batch, most_frozen):
        peak = model.predict(plan).peak
        if peak <= budget_bytes:
            return plan
        if best is None or peak < best[0]:
            best = peak, plan
    assert best is not None
    raise BudgetTooSmall(budget_bytes, *best)


def choose_within(
    manifest: Manifest, budget_bytes: int, work: Workload, *, most_frozen: int | None = None
) -> MemoryPlan:
    """Return the plan that a device chooses: `choose` with MARGIN. Raises as that does, naming the whole budget."""
    try:
        return choose(manifest, int(MARGIN * budget_bytes), work, most_frozen=most_frozen)
    except BudgetTooSmall as exc:
        raise BudgetTooSmall(budget_bytes, int(exc.needed_bytes / MARGIN) + 1, exc.plan) from exc


def plans(manifest: Manifest, batch: int, most_frozen: int | None = None) -> Iterator[MemoryPlan]:
    """Yield all plans that are considered, the preferred first: least frozen, least recomputed, largest micro-batch.

    Stages in which and before which nothing is trained are frozen in all of them.
    """
    stages, fixed = len(manifest.stages), manifest.fixed_stages
    micro_batches = [batch]
    while micro_batches[-1] > 1 and not manifest.whole_batch:
        micro_batches.append(-(-micro_batches[-1] // 2))
    for frozen in range(fixed, max(fixed, min(stages, stages if most_frozen is None else most_frozen)) + 1):
        for saved in _saved(manifest, frozen):
            for micro_batch in micro_batches:
                yield MemoryPlan(micro_batch=micro_batch, saved=saved, frozen=frozen)


def _saved(manifest: Manifest, frozen: int) -> list[tuple[bool, ...]]:
    """Return which stages may be kept, in order of what is then computed twice."""
    stages = len(manifest.stages)
    left = stages - frozen
    if left <= FREE_CHOICE:
        chosen = [(False,) * frozen + keep for keep in product((True, False), repeat=left)]
    else:
        chosen = [(False,) * (stages - kept) + (True,) * kept for kept in range(left, -1, -1)]
    work = _forward_nodes(manifest)
    return sorted(chosen, key=lambda keep: sum(work[k] for k in range(frozen, stages) if not keep[k]))


def _forward_nodes(manifest: Manifest) -> list[int]:
    graphs = _footprint(manifest).graphs
    return [graphs[manifest.graphs[f"encoder.{k}.forward"].digest].nodes for k in range(len(manifest.stages))]


def _footprint(manifest: Manifest) -> Footprint:
    if manifest.footprint is None:
        raise BundleInvalid("the bundle does not say how much memory its graphs take: compile it again")
    return manifest.footprint


class _Model:
    """One step of training as moments: what is held and what is running."""

    def __init__(self, manifest: Manifest, work: Workload) -> None:
        self._manifest, self._work = manifest, work
        self._graphs = _footprint(manifest).graphs
        z = {f"z.{i}": array for i, array in enumerate(manifest.representation)}
        v = {f"v.{i}": array for i, array in enumerate(manifest.values)}
        e = {} if manifest.embedding is None else {"e": manifest.embedding}
        inputs: dict[str, Array] = {value_of(name): array for name, array in manifest.inputs.items()}
        self._sample_bytes = {name: _sample_bytes(a) for name, a in (inputs | e | z | v).items()}
        self._embedded = set(e)
        fixed = manifest.stages[: manifest.fixed_stages]
        self._without_gradient = {*inputs, *(name for stage in fixed for name in stage.writes)}
        self._fixed_bytes = 4 * sum(part.table.size for part in manifest.fixed.values())
        self._representation = sum(self._sample_bytes[name] for name in z)
        self._inputs = sum(self._sample_bytes[name] for name in inputs)
        self._targets = sum(_sample_bytes(task.target) for task in manifest.tasks)

    def predict(self, plan: MemoryPlan) -> Prediction:
        stages, batch = self._manifest.stages, plan.micro_batch
        kinds: list[tuple[str, str | None]] = [
            ("forward", None) if k < plan.frozen else ("keep", "kept") if plan.saved[k] else ("forward", "backward")
            for k in range(len(stages))
        ]
        held = [0]
        peaks: list[tuple[int, GraphFootprint]] = []
        # The stem runs when nothing is saved yet, and again when all that was saved is given up.
        before = [f"stem.{kind}" for kind in ("forward", *(() if plan.frozen else ("backward",))) if self._embedded]
        before = [name for name in before if name in self._manifest.graphs]
        peaks += [(0, self._graph(name)) for name in before]
        for k, (kind, _) in enumerate(kinds):
            peaks.append((held[-1], self._graph(f"encoder.{k}.{kind}")))
            held.append(held[-1] + peaks[-1][1].held(batch))
        steps = [f"head.{task}.step" for task in self._manifest.task_names]
        peaks += [(held[-1], self._graph(name)) for name in steps]
        # The backward pass gives up what a stage has saved when the stage is done.
        peaks += [(held[k + 1], self._graph(f"encoder.{k}.{kind}")) for k, (_, kind) in enumerate(kinds) if kind]
        names = [*before, *steps, *(f"encoder.{k}.{kind}" for k, both in enumerate(kinds) for kind in both if kind)]
        probe = self._probed(plan)
        probe_peaks, probe_names = self._probe(probe, held[-1], kinds)
        peaks += probe_peaks
        names += probe_names
        if self._work.evaluates:
            tasks = self._manifest.task_names
            measured = ["encoder.predict"] if stages else []
            measured += [f"head.{task}.evaluate" for task in tasks]
            measured += ["stem.predict"] * len(self._embedded)
            if self._work.predicts:
                measured += [f"head.{task.name}.predict" for task in self._manifest.tasks if task.metric is not None]
            peaks += [(0, self._graph(name)) for name in measured]
            names += measured
        saved, transient = max(((held, graph.transient(batch)) for held, graph in peaks), key=sum)
        return Prediction(
            base=self._work.base_bytes,
            sessions=self._sessions(names),
            vectors=self._vectors(plan),
            arrays=self._arrays(plan, stages),
            saved=saved,
            transient=transient,
            update=self._update(),
        )

    def _probed(self, plan: MemoryPlan) -> ProbeMethod | None:
        """Return the method of probing: None where all of the encoder is frozen."""
        return self._work.probe if plan.frozen < len(plan.saved) else None

    def _probe(
        self, probe: ProbeMethod | None, held_bytes: int, kinds: list[tuple[str, str | None]]
    ) -> tuple[list[tuple[int, GraphFootprint]], list[str]]:
        """Return the peaks of a probe's runs, with all saved activations held, and the graphs that it alone needs."""
        if probe in {None, "representation"}:
            return [], []
        backward = [f"encoder.{k}.{kind}" for k, (_, kind) in enumerate(kinds) if kind]
        names = []
        if probe == "exact":
            names = [f"encoder.{k}.forward" for k in range(len(kinds))]
            names += [f"head.{task}.loss" for task in self._manifest.task_names]
        return [(held_bytes, self._graph(name)) for name in [*names, *backward]], names

    def _update(self) -> int:
        if self._work.update is None:
            return 0
        table = self._manifest.table
        return 4 * table.size + working_bytes(table, self._work.update) + self._fixed_bytes

    def _graph(self, name: str) -> GraphFootprint:
        return self._graphs[self._manifest.graphs[name].digest]

    def _sessions(self, names: list[str]) -> int:
        loaded = {self._manifest.graphs[name].digest for name in names}  # a file that several need is loaded once
        return ENGINE_BYTES + sum(NODE_BYTES * self._graphs[digest].nodes for digest in loaded)

    def _vectors(self, plan: MemoryPlan) -> int:
        table = self._manifest.table
        parameters, state = table.parameters.size, table.size - table.parameters.size
        vectors = 2 + self._work.state_vectors + (plan.micro_batch < self._work.batch)
        tasks, probe = len(self._manifest.tasks), self._probed(plan)
        gradients: dict[ProbeMethod | None, int] = {"exact": 1, "encoder": tasks}
        encoder = sum(tensor.size for tensor in table.tensors if tensor.part == "encoder")
        rows = 8 * tasks * GRAM_BLOCK if probe in {"encoder", "representation"} else 0
        return 4 * (vectors * parameters + 2 * state + gradients.get(probe, 0) * encoder) + rows + self._fixed_bytes

    def _arrays(self, plan: MemoryPlan, stages: tuple[Stage, ...]) -> int:
        """Return the most bytes that a step's arrays take at any time; the whole batch is in memory."""
        given = self._work.batch * (self._inputs + self._targets)
        values = {name for stage in stages for name in stage.writes} | self._embedded
        held = self._bytes(values)  # while a probe lasts, nothing of it is given up
        flowing: set[str] = set()
        gradients = max(2, len(self._manifest.tasks)) if self._work.merges else 2
        moments = [held + gradients * self._representation]  # the heads
        probing = 0
        for k in reversed(range(plan.frozen, len(stages))):
            flowing |= set(stages[k].reads) - self._without_gradient
            moments.append(self._bytes(values) + self._representation + self._bytes(flowing))
            probing = max(probing, self._bytes(flowing))
            flowing -= set(stages[k].writes)
            values -= set(stages[k].writes)
        if (probe := self._probed(plan)) is not None:
            tasks = len(self._manifest.tasks)
            more: dict[ProbeMethod, int] = {"representation": 0, "exact": max(held, probing), "encoder": probing}
            kept = held + tasks * self._representation
            moments.append(kept + max(gradients * self._representation, self._representation + more[probe]))
        crossing = 0 if stages else COPIES * (self._bytes(self._embedded) + self._representation)
        return max(2 * given, given + plan.micro_batch * (max(moments) + crossing))

    def _bytes(self, names: set[str]) -> int:
        return sum(self._sample_bytes[name] for name in names)


def _sample_bytes(array: Array) -> int:
    return ELEMENT_BYTES[array.dtype] * prod(array.shape)
