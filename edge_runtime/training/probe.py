"""Affinity probes: the effect of a step on one task on the others, measured on a training batch.

Exact look-ahead (Fifty et al., NeurIPS 2021, section 3; MAS, section 3.2): with g_i the encoder's gradient of task i,

    θ|i = θ − lr · (g_i + decay · θ)            S[i→j] = (1 − L_j(θ|i) / L_j(θ)) / lr

for all ordered pairs, the diagonal too, heads fixed. The losses are in training mode, with the statistics and seeds of
the batch. The first-order affinity, from gradients alone, is in gram.py. A probe reads parameters and state and writes
only scratch vectors, so training is the same bit for bit without it.
"""

# coverage: every branch

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Pass, Representation
from edge_runtime.training.gram import first_order_affinity, representation_gram, weight_decay_terms
from edge_runtime.training.model import Model, Targets
from edge_runtime.training.optimizer import look_ahead
from edge_runtime.training.progress import ProbeProgress
from edge_runtime.wire.conflict import gram
from edge_runtime.wire.messages import Affinity
from edge_runtime.wire.training import ProbeMethod

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A method of measuring affinities. `lr` and `weight_decay` are those of the step that it looks ahead."""

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
        """Measure S (T, T), values[i][j] being i→j, for one batch.

        `done` is the batch's forward pass; `losses` and `dz` are those at the current parameters. Uses the encoder's
        range of `model.gradient` as scratch. The method "encoder" holds T gradients at once. A loss of zero (no labels
        in the batch) gives values that are not finite.
        """
        before = [losses[task] for task in model.tasks]
        if self.method == "encoder":
            gradients = [model.backward(done, dz[task], stem=False).copy() for task in model.tasks]
            decay_terms = weight_decay_terms(model.weights[model.encoder], gradients, self.weight_decay)
            return first_order_affinity(gram(gradients), before, decay_terms)
        if self.method == "representation":
            return first_order_affinity(representation_gram([dz[task] for task in model.tasks]), before)
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
    """Return (1 − after / before) / lr; NaN if the loss before is 0."""
    return (1 - after / before) / lr if before else float("nan")


class AffinityStatistics:
    """Mean and variance over batches, by Welford's recurrence, without batches that have a value that is not finite."""

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

    def progress(self, *, is_due: bool) -> ProbeProgress:
        """Return the statistics so far, to go on from; `is_due` is true while a probe waits for its batch."""
        return ProbeProgress(count=self.count, mean=_rows(self._mean), squares=_rows(self._squares), is_due=is_due)

    def result(self) -> Affinity | None:
        """Return mean and variance; None without any probe."""
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
