"""The training loop: batches in a seeded order, one head at a time, one encoder step for all of them.

For T tasks the gradient that flows into the encoder is Σ w_i · ∂L_i/∂z · 1/√T (the released code of MAS; w_i are 1 but
where a plan weights tasks), or what gradient_combination.py makes of conflicting gradients. What follows the
gradient (proximal term, clipping, the optimizer's step) sees it whole. A batch may be worked through in micro-batches;
a probe is then of one of them. The optimizer's state is a vector that the caller keeps, so a round can go on where the
one before it stopped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from edge_runtime.datasets.dataset import DatasetInvalid, Split, convert
from edge_runtime.training.accumulation import Row, add_up, micro_batches
from edge_runtime.training.encoder import Batch, Pass, Representation
from edge_runtime.training.gradient import add_proximal, clip, norm_of
from edge_runtime.training.gradient_combination import gradient_combiner
from edge_runtime.training.model import CombineGradients, Labelled, Losses, Model, Target, Targets
from edge_runtime.training.optimizer import optimizer
from edge_runtime.training.probe import AffinityStatistics, Probe
from edge_runtime.training.progress import ProbeProgress, TrainingProgress
from edge_runtime.training.schedule import batch_at, batch_count, order
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.weighting import Weighting, weighting
from edge_runtime.training.weighting_state import WeightingState
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import Vector

EVALUATION_BATCH = 16
"""Samples at once while losses are measured, where memory allows."""

Report = Callable[[int, int], None]
"""Called with steps done and steps in all."""
Save = Callable[[Callable[[], TrainingProgress]], None]
"""Called after each step with how to get the position, which is cheap, but not for nothing."""
Enter = Callable[[Literal["train", "probe"]], None]
"""Called when probing begins, and when training goes on after it."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What some epochs gave.

    `loss` is the mean by task over all labelled samples, without the tasks' weights. `learnt` is what a weighting keeps
    between rounds.
    """

    loss: dict[str, float]
    samples: int
    affinities: AffinityStatistics
    learnt: WeightingState | None


class Trainer:
    """Trains a model on one split of a data set."""

    def __init__(self, model: Model, split: Split, micro_batch: int | None = None) -> None:
        """With `micro_batch`, gradients are summed over parts of a batch that have at most so many samples."""
        self.model = model
        self._split = split
        self._micro_batch = micro_batch

    def train(
        self,
        settings: Training,
        state: Vector,
        *,
        learnt: WeightingState | None = None,
        received: Vector | None = None,
        after: TrainingProgress | None = None,
        save: Save = lambda _: None,
        report: Report = lambda *_: None,
        enter: Enter = lambda _: None,
    ) -> Trained:
        """Train for `settings.epochs`; changes the model's weights and the optimizer's `state` in place.

        FedProx holds to the parameters `received` (P,), by default as they are now. With `after`, training goes on from
        there: weights and state are then those of that position, which `save` has seen. Raises EngineError, and
        whatever `save`, `report` and `enter` raise.
        """
        model, split = self.model, self._split
        steps = batch_count(len(split), settings.batch)
        learnt = learnt if after is None else after.learnt
        optimize, weigh = optimizer(settings), weighting(model.tasks, settings.weighting, learnt)
        if received is None and settings.proximal_mu:
            received = model.parameters.copy()
        prober = _Prober(model, settings, enter, after.probes if after else None)
        mean = _MeanLosses(model.tasks, after)
        total = settings.epochs * steps
        for done in range(after.steps if after else 0, total):
            epoch, step = settings.first_epoch + done // steps, done % steps
            chosen = batch_at(order(settings.seed, epoch, len(split)), settings.batch, step)
            x, targets = load(model, split, chosen.tolist())
            prober.pass_batch(epoch * steps + step)
            place = (settings.seed, epoch, step)
            losses, norms = self._gradient(x, targets, weigh, prober, partial(gradient_combiner, settings), place)
            if received is not None and settings.proximal_mu:
                add_proximal(model.gradient, model.parameters, received, settings.proximal_mu)
            if settings.clip_norm:
                clip(model.gradient, settings.clip_norm)
            optimize.step(model.parameters, model.gradient, state, model.trained)
            weigh.update(np.array([losses[task] for task in model.tasks]), norms)
            mean.add(losses, targets, len(chosen))
            save(partial(_position, done + 1, mean, prober, weigh))
            report(done + 1, total)
        return Trained(
            loss=mean.result(),
            samples=settings.epochs * len(split),
            affinities=prober.statistics,
            learnt=weigh.learnt,
        )

    def _gradient(
        self,
        x: Batch,
        targets: Targets,
        weigh: Weighting,
        prober: "_Prober",
        merge_at: Callable[[Sequence[int]], CombineGradients | None],
        place: tuple[int, int, int],
    ) -> tuple[Losses, Row]:
        """The losses of a batch and the norms ‖∂L_i/∂z‖ (T,), with all gradients in `model.gradient`.

        What is random is drawn for the `place` of the batch: seed, epoch and step.
        """
        model = self.model
        model.reseed(*place)
        if self._micro_batch is None or self._micro_batch >= len(x):
            return self._part(x, targets, weigh.weights, prober, merge_at(place), norms=weigh.needs_norms)
        total, squares = np.full(len(model.tasks), np.nan), np.zeros(len(model.tasks))

        def heads(number: int, done: Pass, wanted: Targets, share: Row) -> Callable[[], None]:
            merge = merge_at((*place, number))
            losses, norms, finish = self._heads(
                done, wanted, weigh.weights * share, prober, merge, norms=weigh.needs_norms
            )
            found = share > 0
            total[found] = np.nan_to_num(total[found]) + (share * list(losses.values()))[found]
            squares[found] += (share * norms)[found] ** 2
            return finish

        add_up(model, place, micro_batches(x, targets, self._micro_batch), heads)
        return dict(zip(model.tasks, total.tolist(), strict=True)), np.sqrt(squares)

    def _part(
        self,
        x: Batch,
        targets: Targets,
        weights: Row,
        prober: "_Prober",
        merge: CombineGradients | None,
        *,
        norms: bool,
    ) -> tuple[Losses, Row]:
        """The same of a batch that is run at once; NaN for norms that are not asked for."""
        if not prober.is_due and not norms:
            return self.model.learn(x, targets, weights, None, merge), np.full(len(self.model.tasks), np.nan)
        losses, found, finish = self._heads(self.model.forward(x), targets, weights, prober, merge, norms=norms)
        finish()
        return losses, found

    def _heads(
        self,
        done: Pass,
        targets: Targets,
        weights: Row,
        prober: "_Prober",
        merge: CombineGradients | None,
        *,
        norms: bool,
    ) -> tuple[Losses, Row, Callable[[], None]]:
        """The heads of a forward pass, which is then on its way back: call what comes last for the rest of it."""
        model = self.model
        found = np.full(len(model.tasks), np.nan)

        def keep(task: str, _: float, dz: Representation) -> None:
            if norms:
                found[model.tasks.index(task)] = math.hypot(*(norm_of(array.reshape(-1)) for array in dz))
            prober.keep(task, dz)

        losses, total = model.heads(done.z, targets, weights, keep if norms or prober.is_due else None, merge)
        if prober.is_due:
            prober.measure(done, targets, losses)
        return losses, found, model.send_back(done, total, release=True)


def _position(steps: int, mean: "_MeanLosses", prober: "_Prober", weigh: Weighting) -> TrainingProgress:
    return TrainingProgress(
        steps=steps, loss_sums=mean.sums, labelled=mean.counts, probes=prober.so_far, learnt=weigh.learnt
    )


class _Prober:
    """When affinities are probed, with what, and what came of it.

    A probe is due at every so many batches of the group, counted through its rounds. It waits for a batch with a loss
    of every task: without labels there is nothing to gain on. Nor is there for an encoder that is frozen whole.
    """

    def __init__(self, model: Model, settings: Training, enter: Enter, before: ProbeProgress | None) -> None:
        self._model = model
        self._every = settings.probe_every if model.trains_encoder else 0
        self._probe = Probe(method=settings.probe, lr=settings.lr, weight_decay=settings.weight_decay)
        self._enter = enter
        self._kept: dict[str, Representation] = {}
        self.statistics = AffinityStatistics(model.tasks, before)
        self.is_due = before is not None and before.is_due

    @property
    def so_far(self) -> ProbeProgress:
        """All that goes on from here."""
        return self.statistics.so_far(is_due=self.is_due)

    def pass_batch(self, position: int) -> None:
        """The batch at a position in the group's rounds comes next."""
        self.is_due = self.is_due or (self._every > 0 and position % self._every == 0)

    def keep(self, task: str, dz: Representation) -> None:
        """A task's ∂L_i/∂z of the batch."""
        if self.is_due:
            self._kept[task] = tuple(map(np.copy, dz))

    def measure(self, done: Pass, targets: Targets, losses: Losses) -> None:
        """Probe the batch, whose heads have run, if it has all losses."""
        if all(loss != 0 and math.isfinite(loss) for loss in losses.values()):
            self._enter("probe")
            self.statistics.add(self._probe.measure(self._model, done, targets, losses, self._kept))
            self.is_due = False
            self._enter("train")
        self._kept = {}


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
        """The means; a task without any label is left out."""
        return {task: value / self.counts[task] for task, value in self.sums.items() if self.counts[task]}


def evaluate(
    model: Model, split: Split, batch: int, *, scores: TaskMetrics | None = None, report: Report = lambda *_: None
) -> dict[str, float]:
    """Mean losses by task over the labelled samples of a split in evaluation mode; `scores` take each batch as well.

    Raises EngineError.
    """
    mean = _MeanLosses(model.tasks)
    for start in range(0, len(split), batch):
        chosen = range(start, min(start + batch, len(split)))
        x, targets = load(model, split, chosen)
        z = model.encode(x)
        mean.add({task: model.evaluate(task, z, targets[task]) for task in model.tasks}, targets, len(chosen))
        if scores is not None:
            scores.add(z, targets)
        report(chosen.stop, len(split))
    return mean.result()


def check_fits(manifest: Manifest, split: Split) -> None:
    """Raises DatasetInvalid unless the split has images and labels of the shapes and types that a bundle wants."""
    if split.image.shape[1:] != manifest.input.shape:
        raise DatasetInvalid(
            f"the images are {split.image.shape[1:]}, the bundle was compiled for {manifest.input.shape}: "
            "import the data again at that size, or compile the model for this one"
        )
    for task in manifest.tasks:
        if task.name not in split.labels:
            raise DatasetInvalid(f"the data set has no labels for {task.name}; it has {', '.join(split.tasks)}")
        labels = split.labels[task.name]
        if labels.shape[1:] != task.target.shape:
            raise DatasetInvalid(
                f"the labels of {task.name} are {labels.shape[1:]}, the bundle was compiled for {task.target.shape}"
            )
        convert(labels[:1], task.target.dtype)


def load(model: Model, split: Split, chosen: Sequence[int]) -> tuple[Batch, dict[str, Target]]:
    """Some samples as the model's graphs want them: x (B, …) and the targets by task."""
    x, labels = split.batch(chosen, model.tasks)
    targets: dict[str, Target] = {}
    for task in model.tasks:
        target = convert(labels[task], model.manifest.task(task).target.dtype)
        labelled = split.labelled(task)[np.asarray(chosen, np.int64)]
        if labelled.all():
            targets[task] = target
        else:
            rows = np.flatnonzero(labelled)
            targets[task] = Labelled(rows, target[rows])
    return x, targets
