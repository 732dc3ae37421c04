"""The training loop: batches in a seeded order, one head at a time, one encoder step for all of them.

For T tasks the encoder's gradient at the representation is Σ w_i · ∂L_i/∂z · 1/√T (the released code of MAS; w_i are 1
unless a plan weights tasks), or a combination of conflicting gradients (gradient_combination.py). The proximal term,
clipping and the optimizer's step see the gradient of the whole batch. A batch may run in micro-batches; a probe is then
of one of them. The caller keeps the optimizer's state, so a round can go on from the one before it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from edge_runtime.datasets.dataset import Split, convert
from edge_runtime.training.accumulation import Row, accumulate_gradients, micro_batches
from edge_runtime.training.encoder import Array, Inputs, Pass, Representation, batch_size
from edge_runtime.training.gradient import add_proximal, clip, norm_of
from edge_runtime.training.gradient_combination import gradient_combiner
from edge_runtime.training.model import CombineGradients, Labelled, Losses, Model, Target, Targets
from edge_runtime.training.optimizer import Optimizer, Ranges, make_optimizer
from edge_runtime.training.probe import AffinityStatistics, Probe
from edge_runtime.training.progress import ProbeProgress, TrainingProgress
from edge_runtime.training.schedule import batch_at, batch_count, order
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.vary import vary
from edge_runtime.training.weighting import Weighting, make_weighting
from edge_runtime.training.weighting_state import WeightingState
from edge_runtime.wire.augmentation import augmentation
from edge_runtime.wire.graph_names import value_of
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import Vector

Report = Callable[[int, int], None]
"""Called with steps done and steps in all."""
Save = Callable[[Callable[[], TrainingProgress]], None]
"""Called after each step with a function that returns the progress, which costs a little."""
Vary = Callable[[Array, Mapping[str, Array], Sequence[int]], None]
"""Called with images, targets by task, and the numbers of the samples; changes the arrays in place."""
Enter = Callable[[Literal["train", "probe"]], None]
"""Called when probing begins, and when training goes on after it."""


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """The result of some epochs, or of what was done of them.

    `loss` is the mean by task over all labelled samples, without the tasks' weights. `examples` are those by task in
    one of the epochs, rounded up. `weighting_state` is for the next round.
    """

    loss: dict[str, float]
    examples: dict[str, int]
    affinities: AffinityStatistics
    weighting_state: WeightingState | None


class Trainer:
    """Trains a model on one split of a data set."""

    def __init__(self, model: Model, split: Split, micro_batch: int | None = None) -> None:
        """With `micro_batch`, gradients are summed over parts of a batch of at most this many samples."""
        self.model = model
        self._split = split
        self._micro_batch = micro_batch

    def train(
        self,
        settings: Training,
        state: Vector,
        *,
        weighting_state: WeightingState | None = None,
        received: Vector | None = None,
        held: Ranges | None = None,
        optimizer: Optimizer | None = None,
        repeat: int = 1,
        trained: Sequence[Ranges] | None = None,
        after: TrainingProgress | None = None,
        save: Save = lambda _: None,
        report: Report = lambda *_: None,
        enter: Enter = lambda _: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> TrainingOutcome:
        """Train for `settings.epochs`; changes the model's weights and the optimizer's `state` in place.

        It ends before after `settings.share` of the steps, or after the step in which `is_stopped` becomes true.

        FedProx holds to the parameters `received` (P,), by default the current ones: all, or the ranges `held`. The
        `optimizer` is that of the settings unless another is given; it takes `repeat` steps on each batch, and steps
        the ranges that `trained` has for an epoch, by default all. With `after`, training goes on from that progress,
        and weights and state must be those of the same step. Raises EngineError, AugmentationImpossible, and all that
        `save`, `report` and `enter` raise.
        """
        model, split = self.model, self._split
        steps = batch_count(len(split), settings.batch) * repeat
        weighting_state = weighting_state if after is None else after.weighting_state
        optimize = optimizer or make_optimizer(settings)
        weigh = make_weighting(model.tasks, settings.weighting, weighting_state)
        if received is None and settings.proximal_mu:
            received = model.parameters.copy()
        prober = _Prober(model, settings, enter, after.probes if after else None)
        mean = _MeanLosses(model.tasks, after)
        total = math.ceil(settings.share * settings.epochs * steps)
        asked = augmentation(model.manifest, settings)
        vary_by = partial(vary, asked, seed=settings.seed) if asked else None
        order_of = lru_cache(maxsize=1)(lambda epoch: order(settings.seed, epoch, len(split)))
        for done in range(after.steps if after else 0, total):
            epoch, step = settings.first_epoch + done // steps, done % steps
            chosen = batch_at(order_of(epoch), settings.batch, step // repeat)
            x, targets = load(model, split, chosen.tolist(), vary_by and partial(vary_by, epoch=epoch))
            prober.on_batch(epoch * steps + step)
            place = (settings.seed, epoch, step)
            losses, norms = self._gradient(x, targets, weigh, prober, partial(gradient_combiner, settings), place)
            if received is not None and settings.proximal_mu:
                for part in held or (slice(None),):
                    add_proximal(model.gradient[part], model.parameters[part], received[part], settings.proximal_mu)
            if settings.clip_norm:
                clip(model.gradient, settings.clip_norm)
            ranges = model.trained if trained is None else trained[done // steps]
            optimize.step(model.parameters, model.gradient, state, ranges)
            weigh.update(np.array([losses[task] for task in model.tasks]), norms)
            mean.add(losses, targets, len(chosen))
            save(partial(_progress, done + 1, mean, prober, weigh))
            report(done + 1, total)
            if is_stopped():
                break
        return TrainingOutcome(
            loss=mean.result(),
            examples={task: -(-count // (settings.epochs * repeat)) for task, count in mean.counts.items() if count},
            affinities=prober.statistics,
            weighting_state=weigh.state,
        )

    def _gradient(
        self,
        x: Inputs,
        targets: Targets,
        weigh: Weighting,
        prober: "_Prober",
        combiner_at: Callable[[Sequence[int]], CombineGradients | None],
        place: tuple[int, int, int],
    ) -> tuple[Losses, Row]:
        """Compute all gradients of a batch into `model.gradient`; return the losses and the norms ‖∂L_i/∂z‖ (T,).

        Seeds follow from the `place` of the batch: seed, epoch and step.
        """
        model = self.model
        model.reseed(*place)
        if self._micro_batch is None or self._micro_batch >= batch_size(x):
            return self._part(x, targets, weigh.weights, prober, combiner_at(place), norms=weigh.needs_norms)
        total, squares = np.full(len(model.tasks), np.nan), np.zeros(len(model.tasks))

        def run_heads(number: int, done: Pass, wanted: Targets, share: Row) -> Callable[[], None]:
            combine = combiner_at((*place, number))
            losses, norms, finish = self._heads(
                done, wanted, weigh.weights * share, prober, combine, norms=weigh.needs_norms
            )
            found = share > 0
            total[found] = np.nan_to_num(total[found]) + (share * list(losses.values()))[found]
            squares[found] += (share * norms)[found] ** 2
            return finish

        accumulate_gradients(model, place, micro_batches(x, targets, self._micro_batch), run_heads)
        return dict(zip(model.tasks, total.tolist(), strict=True)), np.sqrt(squares)

    def _part(
        self,
        x: Inputs,
        targets: Targets,
        weights: Row,
        prober: "_Prober",
        combine: CombineGradients | None,
        *,
        norms: bool,
    ) -> tuple[Losses, Row]:
        """Do the same for a batch in one run; the norms are NaN unless they are requested."""
        if not prober.is_due and not norms:
            return self.model.learn(x, targets, weights, None, combine), np.full(len(self.model.tasks), np.nan)
        losses, found, finish = self._heads(self.model.forward(x), targets, weights, prober, combine, norms=norms)
        finish()
        return losses, found

    def _heads(
        self,
        done: Pass,
        targets: Targets,
        weights: Row,
        prober: "_Prober",
        combine: CombineGradients | None,
        *,
        norms: bool,
    ) -> tuple[Losses, Row, Callable[[], None]]:
        """Run the heads of a forward pass and start its backward pass, which the returned function completes."""
        model = self.model
        found = np.full(len(model.tasks), np.nan)

        def keep(task: str, _: float, dz: Representation) -> None:
            if norms:
                found[model.tasks.index(task)] = math.hypot(*(norm_of(array.reshape(-1)) for array in dz))
            prober.save(task, dz)

        losses, total = model.run_heads(done.z, targets, weights, keep if norms or prober.is_due else None, combine)
        if prober.is_due:
            prober.measure(done, targets, losses)
        return losses, found, model.start_backward(done, total, release=True)


def _progress(steps: int, mean: "_MeanLosses", prober: "_Prober", weigh: Weighting) -> TrainingProgress:
    return TrainingProgress(
        steps=steps, loss_sums=mean.sums, labelled=mean.counts, probes=prober.progress, weighting_state=weigh.state
    )


class _Prober:
    """The probes of a round: when they are due, and their statistics.

    A probe is due every `probe_every` batches of the group, counted through its rounds. It waits for a batch with a
    loss of every task. An encoder that is completely frozen has no probes.
    """

    def __init__(self, model: Model, settings: Training, enter: Enter, before: ProbeProgress | None) -> None:
        self._model = model
        self._every = settings.probe_every if model.trains_encoder else 0
        self._probe = Probe(method=settings.probe, lr=settings.lr, weight_decay=settings.weight_decay)
        self._enter = enter
        self._gradients: dict[str, Representation] = {}
        self.statistics = AffinityStatistics(model.tasks, before)
        self.is_due = before is not None and before.is_due

    @property
    def progress(self) -> ProbeProgress:
        """The progress, to go on from."""
        return self.statistics.progress(is_due=self.is_due)

    def on_batch(self, number: int) -> None:
        """Prepare for the next batch, which has this number in the group's rounds."""
        self.is_due = self.is_due or (self._every > 0 and number % self._every == 0)

    def save(self, task: str, dz: Representation) -> None:
        """Copy a task's ∂L_i/∂z of the batch, if a probe is due."""
        if self.is_due:
            self._gradients[task] = tuple(map(np.copy, dz))

    def measure(self, done: Pass, targets: Targets, losses: Losses) -> None:
        """Probe the batch after its heads have run, if it has all losses."""
        if all(loss != 0 and math.isfinite(loss) for loss in losses.values()):
            self._enter("probe")
            self.statistics.add(self._probe.measure(self._model, done, targets, losses, self._gradients))
            self.is_due = False
            self._enter("train")
        self._gradients = {}


class _MeanLosses:
    """Mean losses by task, each batch weighted by its labelled samples."""

    def __init__(self, tasks: Sequence[str], before: TrainingProgress | None = None) -> None:
        self.sums = dict.fromkeys(tasks, 0.0) | (before.loss_sums if before else {})
        self.counts = dict.fromkeys(tasks, 0) | (before.labelled if before else {})

    def add(self, losses: Losses, targets: Targets, samples: int) -> None:
        """Take the losses of a batch."""
        for task, loss in losses.items():
            target = targets[task]
            if count := len(target.rows) if isinstance(target, Labelled) else samples:
                self.sums[task] += loss * count
                self.counts[task] += count

    def result(self) -> dict[str, float]:
        """Return the means, without tasks that have no label."""
        return {task: value / self.counts[task] for task, value in self.sums.items() if self.counts[task]}


def evaluate(
    model: Model, split: Split, batch: int, *, metrics: TaskMetrics | None = None, report: Report = lambda *_: None
) -> dict[str, float]:
    """Return mean losses by task over the labelled samples of a split in evaluation mode.

    `metrics` take each batch as well. Raises EngineError.
    """
    mean = _MeanLosses(model.tasks)
    for start in range(0, len(split), batch):
        chosen = range(start, min(start + batch, len(split)))
        x, targets = load(model, split, chosen)
        z = model.encode(x)
        mean.add({task: model.evaluate(task, z, targets[task]) for task in model.tasks}, targets, len(chosen))
        if metrics is not None:
            metrics.add(z, targets)
        report(chosen.stop, len(split))
    return mean.result()


def load(
    model: Model, split: Split, chosen: Sequence[int], vary_by: Vary | None = None
) -> tuple[Inputs, dict[str, Target]]:
    """Return samples in the form of the model's graphs: inputs and targets by name, as `vary_by` changes them."""
    inputs, labels = split.batch(chosen, model.tasks, tuple(model.manifest.inputs))
    x = {value_of(name): array for name, array in inputs.items()}
    types = {task.name: task.target.dtype for task in model.manifest.tasks}
    arrays = {task: convert(labels[task], types[task], split.factors.get(task)) for task in model.tasks}
    if vary_by is not None:
        vary_by(x["x"], arrays, chosen)
    targets: dict[str, Target] = {}
    for task, target in arrays.items():
        labelled = split.labelled(task)[np.asarray(chosen, np.int64)]
        if labelled.all():
            targets[task] = target
        else:
            rows = np.flatnonzero(labelled)
            targets[task] = Labelled(rows, target[rows])
    return x, targets
