"""Affinity probes: how much a step on one task helps or hurts the others, measured on a training batch.

Exact look-ahead (Fifty et al., NeurIPS 2021, section 3; MAS, section 3.2): with g_i the encoder's gradient of task i,

    θ|i = θ − lr · (g_i + decay · θ)            S[i→j] = (1 − L_j(θ|i) / L_j(θ)) / lr

for all ordered pairs, the diagonal too, heads fixed. The losses are those of training: with the statistics of the batch
and what was drawn for it. What the gradients alone say of it, to first order, is in gram.py. A probe reads parameters
and state and writes only scratch vectors, so training goes on bit for bit as if it had not been there.
"""

# coverage: every branch

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Pass, Representation
from edge_runtime.training.gram import first_order, pull
from edge_runtime.training.model import Model, Targets
from edge_runtime.training.optimizer import look_ahead
from edge_runtime.training.progress import ProbeProgress
from edge_runtime.wire.conflict import gram
from edge_runtime.wire.messages import Affinity
from edge_runtime.wire.training import ProbeMethod

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How affinities are measured. `lr` and `weight_decay` are those of the step that is looked ahead."""

    method: ProbeMethod
    lr: float
    weight_decay: float

    def measure(
        self,
        model: Model,
        done: Pass,
        targets: Targets,
        losses: Mapping[str, float],
        dz: Mapping[str, Representation],
    ) -> Matrix:
        """S (T, T), values[i][j] being i→j, for one batch.

        `done` is the batch's forward pass, `losses` and `dz` are those at the current parameters. Uses the encoder's
        part of `model.gradient` as scratch; the first order of the encoder's gradients holds T of them at once. A loss
        of zero (no labels in the batch) gives values that are not finite.
        """
        if self.method == "exact":
            return self._exact(model, done, targets, losses, dz)
        before = [losses[task] for task in model.tasks]
        if self.method == "encoder":
            gradients = [model.backward(done, dz[task], stem=False).copy() for task in model.tasks]
            pulls = pull(model.weights[model.encoder], gradients, self.weight_decay)
            return first_order(gram(gradients), before, pulls)
        arrays = range(len(dz[model.tasks[0]]))
        return first_order(np.sum([gram([dz[task][k] for task in model.tasks]) for k in arrays], axis=0), before)

    def _exact(
        self,
        model: Model,
        done: Pass,
        targets: Targets,
        losses: Mapping[str, float],
        dz: Mapping[str, Representation],
    ) -> Matrix:
        ahead = np.empty_like(model.weights[model.encoder])
        values = np.empty((len(model.tasks), len(model.tasks)))
        for i, source in enumerate(model.tasks):
            gradient = model.backward(done, dz[source], stem=False)
            look_ahead(model.weights[model.encoder], gradient, lr=self.lr, weight_decay=self.weight_decay, out=ahead)
            z = model.look_ahead(done, ahead)
            for j, target in enumerate(model.tasks):
                values[i, j] = relative_gain(losses[target], model.loss(target, z, targets[target]), self.lr)
        return values


def relative_gain(before: float, after: float, lr: float) -> float:
    """(1 − after / before) / lr; not finite where there was no loss before."""
    return (1 - after / before) / lr if before else float("nan")


class AffinityStatistics:
    """Mean and variance over batches, by Welford's recurrence; a batch with a value that is not finite is left out."""

    def __init__(self, tasks: tuple[str, ...], before: ProbeProgress | None = None) -> None:
        self.tasks = tasks
        shape = (len(tasks), len(tasks))
        self.count = before.count if before else 0
        self._mean = np.array(before.mean).reshape(shape) if before else np.zeros(shape)
        self._squares = np.array(before.squares).reshape(shape) if before else np.zeros(shape)

    def add(self, values: Matrix) -> None:
        """Take one batch's values (T, T)."""
        if not np.isfinite(values).all():
            return
        self.count += 1
        difference = values - self._mean
        self._mean += difference / self.count
        self._squares += difference * (values - self._mean)

    def so_far(self, *, is_due: bool) -> ProbeProgress:
        """All that goes on from here; `is_due` says whether a probe waits for its batch."""
        return ProbeProgress(count=self.count, mean=_rows(self._mean), squares=_rows(self._squares), is_due=is_due)

    def result(self) -> Affinity | None:
        """What was measured; None if nothing was."""
        if self.count == 0:
            return None
        variance = self._squares / (self.count - 1) if self.count > 1 else None
        return Affinity(
            tasks=self.tasks,
            count=self.count,
            mean=_rows(self._mean),
            variance=None if variance is None else _rows(variance),
        )


def _rows(matrix: Matrix) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
