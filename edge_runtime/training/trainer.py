"""The training loop: batches in a seeded order, one head at a time, one encoder step for all of them.

For T tasks the gradient that flows into the encoder is Σ ∂L_i/∂z · 1/√T (the released code of MAS). Momentum lives in a
vector (P,) that the caller keeps, so a round can go on where the one before it stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_runtime.datasets.dataset import Array, DatasetInvalid, Split, convert
from edge_runtime.training.encoder import Batch, Representation
from edge_runtime.training.model import Model
from edge_runtime.training.optimizer import Sgd
from edge_runtime.training.probe import AffinityStatistics, probe
from edge_runtime.training.schedule import batch_count, batches, order
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import Vector

Report = Callable[[int, int], None]
"""Called with steps done and steps in all."""
Enter = Callable[[Literal["train", "probe"]], None]
"""Called when probing begins, and when training goes on after it."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What some epochs gave: mean losses by task over all samples, samples seen, affinities where they were probed."""

    loss: dict[str, float]
    samples: int
    affinities: AffinityStatistics


class Trainer:
    """Trains a model on one split of a data set."""

    def __init__(self, model: Model, split: Split) -> None:
        self.model = model
        self._split = split

    def train(
        self,
        settings: Training,
        velocity: Vector,
        *,
        report: Report = lambda *_: None,
        enter: Enter = lambda _: None,
    ) -> Trained:
        """Train for `settings.epochs`; changes the model's weights and `velocity` (P,) in place.

        Raises EngineError, and whatever `report` and `enter` raise.
        """
        model = self.model
        optimizer = Sgd(lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
        statistics = AffinityStatistics(model.tasks)
        sums = dict.fromkeys(model.tasks, 0.0)
        total = settings.epochs * batch_count(len(self._split), settings.batch)
        done = 0
        for epoch in range(settings.first_epoch, settings.first_epoch + settings.epochs):
            chosen_by_step = batches(order(settings.seed, epoch, len(self._split)), settings.batch)
            for step, chosen in enumerate(chosen_by_step):
                probing = settings.probe_every > 0 and done % settings.probe_every == 0
                model.reseed(settings.seed, epoch, step)
                losses, affinity = self._step(chosen.tolist(), settings, enter if probing else None)
                optimizer.step(model.parameters, model.gradient, velocity)
                if affinity is not None:
                    statistics.add(affinity)
                for task, loss in losses.items():
                    sums[task] += loss * len(chosen)
                done += 1
                report(done, total)
        samples = settings.epochs * len(self._split)
        return Trained(
            loss={task: value / samples for task, value in sums.items()}, samples=samples, affinities=statistics
        )

    def _step(
        self, chosen: Sequence[int], settings: Training, enter: Enter | None
    ) -> tuple[dict[str, float], Array | None]:
        """The losses of a batch, with all gradients in `model.gradient`; with `enter` also its affinities."""
        model = self.model
        x, targets = load(model, self._split, chosen)
        if enter is None:
            return model.learn(x, targets), None
        kept: dict[str, Representation] = {}
        done = model.forward(x)
        losses, total = model.heads(done.z, targets, lambda task, dz: kept.update({task: tuple(map(np.copy, dz))}))
        enter("probe")
        affinity = probe(model, done, targets, losses, kept, lr=settings.lr, weight_decay=settings.weight_decay)
        enter("train")
        model.backward(done, total)
        return losses, affinity


def evaluate(model: Model, split: Split, batch: int, *, report: Report = lambda *_: None) -> dict[str, float]:
    """Mean losses by task over a split in evaluation mode, each batch weighted by its samples. Raises EngineError."""
    sums = dict.fromkeys(model.tasks, 0.0)
    for start in range(0, len(split), batch):
        chosen = range(start, min(start + batch, len(split)))
        x, targets = load(model, split, chosen)
        z = model.encode(x)
        for task in model.tasks:
            sums[task] += model.evaluate(task, z, targets[task]) * len(chosen)
        report(chosen.stop, len(split))
    return {task: value / len(split) for task, value in sums.items()}


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


def load(model: Model, split: Split, chosen: Sequence[int]) -> tuple[Batch, dict[str, Array]]:
    """Some samples as the model's graphs want them: x (B, …) and the targets by task."""
    x, labels = split.batch(chosen, model.tasks)
    targets = {task: convert(labels[task], model.manifest.task(task).target.dtype) for task in model.tasks}
    return x, targets
