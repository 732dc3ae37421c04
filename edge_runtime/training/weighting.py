# ruff: noqa: N806  (T is the number of tasks)
"""How much each task's loss counts in a step: L = Σ w_i · L_i.

Fixed weights, GradNorm and uncertainty weighting behind one seam. A weighting is asked for its weights before a step
and told after it what the step measured: each task's loss and the norm of its gradient at the representation. A loss
that is NaN or zero is of a batch without labels of the task. What it has learnt is plain numbers by task, which the
device keeps between rounds (a fresh weighting begins with every weight 1).
"""

# coverage: every branch

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.weighting_state import WeightingState
from edge_runtime.wire.training import FixedWeighting, GradNormWeighting, TaskWeighting, UncertaintyWeighting

Row = NDArray[np.float64]

LEAST_WEIGHT = 1e-3
"""GradNorm's weights stay above it: a weight that reached zero would have no gradient to come back by."""
MOST_LOG_VARIANCE = 10.0
"""Uncertainty weights stay between e^−10 and e^10."""


class Weighting(Protocol):
    """A seam, because a step is the same whatever decides the weights."""

    needs_norms: bool
    """Whether `update` looks at the norms."""

    @property
    def weights(self) -> Row:
        """The weights for the next step, (T,)."""
        ...

    @property
    def learnt(self) -> WeightingState | None:
        """What is kept between rounds; None where nothing is learnt."""
        ...

    def update(self, losses: Row, norms: Row) -> None:
        """A step was taken: losses (T,) and norms ‖∂L_i/∂z‖ (T,) of the whole batch, both of unweighted losses."""
        ...


class FixedWeights:
    """Weights that do not change; 1 for a task that is not named."""

    needs_norms = False
    learnt = None

    def __init__(self, tasks: Sequence[str], settings: FixedWeighting) -> None:
        self.weights: Row = np.array([settings.weights.get(task, 1.0) for task in tasks])

    def update(self, losses: Row, norms: Row) -> None:
        """Nothing is learnt."""


class GradNorm:
    """GradNorm (Chen et al., ICML 2018, section 3 and algorithm 1): tasks that learn slowly get larger gradients.

    G_i = w_i · ‖∂L_i/∂z‖,  r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)),  target_i = mean(G) · r_i^alpha, held constant
    w_i ← w_i − lr · sign(G_i − target_i) · ‖∂L_i/∂z‖ / mean(G),  then Σ w_i = T

    The division by mean(G) is not in the paper, which leaves the step to Adam: like Adam's it does not depend on the
    losses' scale. L_i(0) is the first loss of the task that this device has seen.
    """

    method = "gradnorm"
    needs_norms = True

    def __init__(self, tasks: Sequence[str], settings: GradNormWeighting, learnt: WeightingState | None) -> None:
        self._tasks = tuple(tasks)
        self._settings = settings
        self._first = np.full(len(self._tasks), np.nan)
        self.weights: Row = np.ones(len(self._tasks))
        if learnt is not None and learnt.method == self.method and learnt.values.keys() == set(tasks):
            self.weights[:] = [learnt.values[task] for task in self._tasks]
            self._first[:] = [learnt.first_losses.get(task, np.nan) for task in self._tasks]

    @property
    def learnt(self) -> WeightingState:
        """The weights, and the first losses of the tasks that have had labels."""
        first = {task: float(loss) for task, loss in zip(self._tasks, self._first, strict=True) if not np.isnan(loss)}
        return WeightingState(method=self.method, values=_by_task(self._tasks, self.weights), first_losses=first)

    def update(self, losses: Row, norms: Row) -> None:
        """Move the weights of the tasks that the batch had labels of; with one of them there is nothing to compare."""
        new = np.isnan(self._first) & (losses > 0)
        self._first[new] = losses[new]
        known = (losses > 0) & np.isfinite(norms)
        G = self.weights * norms  # (T,)
        if known.sum() < 2 or not G[known].any():
            return
        mean = G[known].mean()
        rate = losses[known] / self._first[known]
        rate /= rate.mean()
        target = mean * rate**self._settings.alpha
        step = np.sign(G[known] - target) * norms[known] / mean
        self.weights[known] = np.maximum(self.weights[known] - self._settings.lr * step, LEAST_WEIGHT)
        self.weights *= len(self._tasks) / self.weights.sum()


class Uncertainty:
    """Uncertainty weighting (Kendall et al., CVPR 2018, section 3.2): L = Σ exp(−s_i) · L_i + s_i with learnt s_i.

    s_i ← s_i − lr · (1 − exp(−s_i) · L_i), from s_i = 0.
    """

    method = "uncertainty"
    needs_norms = False

    def __init__(self, tasks: Sequence[str], settings: UncertaintyWeighting, learnt: WeightingState | None) -> None:
        self._tasks = tuple(tasks)
        self._settings = settings
        self._s = np.zeros(len(self._tasks))
        if learnt is not None and learnt.method == self.method and learnt.values.keys() == set(tasks):
            self._s[:] = [learnt.values[task] for task in self._tasks]

    @property
    def weights(self) -> Row:
        """exp(−s), (T,)."""
        weights: Row = np.exp(-self._s)
        return weights

    @property
    def learnt(self) -> WeightingState:
        """The log variances."""
        return WeightingState(method=self.method, values=_by_task(self._tasks, self._s))

    def update(self, losses: Row, norms: Row) -> None:  # noqa: ARG002  (a seam's signature)
        """One step of gradient descent on s for the tasks that the batch had labels of."""
        slope = np.where(losses > 0, 1 - self.weights * losses, 0.0)
        self._s = np.clip(self._s - self._settings.lr * slope, -MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)


def weighting(tasks: Sequence[str], settings: TaskWeighting | None, learnt: WeightingState | None = None) -> Weighting:
    """The weighting that a plan asks for, else the plain sum. It goes on from `learnt` if method and tasks agree."""
    if isinstance(settings, GradNormWeighting):
        return GradNorm(tasks, settings, learnt)
    if isinstance(settings, UncertaintyWeighting):
        return Uncertainty(tasks, settings, learnt)
    return FixedWeights(tasks, settings or FixedWeighting())


def _by_task(tasks: Sequence[str], values: Row) -> dict[str, float]:
    return {task: float(value) for task, value in zip(tasks, values, strict=True)}
