# ruff: noqa: N806  (T is the number of tasks)
"""Task weights of the loss: L = Σ w_i · L_i.

Fixed weights, GradNorm and uncertainty weighting behind one seam. A weighting gives its weights before a step
and is updated after it with the measures of the step: each task's loss and the norm of its gradient at the
representation. A loss that is NaN or zero comes from a batch without labels of the task. The state of a weighting is
numbers by task, which the device keeps between rounds. A new weighting begins with every weight 1.
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
    """A seam: the rule that sets the tasks' weights."""

    needs_norms: bool
    """True if `update` uses the norms."""

    @property
    def weights(self) -> Row:
        """The weights for the next step, (T,)."""
        ...

    @property
    def state(self) -> WeightingState | None:
        """The state to keep between rounds; None without any."""
        ...

    def update(self, losses: Row, norms: Row) -> None:
        """Update after a step by losses (T,) and norms ‖∂L_i/∂z‖ (T,) of the batch, both without weights."""
        ...


class FixedWeights:
    """Weights that do not change; 1 for a task that is not named."""

    needs_norms = False
    state = None

    def __init__(self, tasks: Sequence[str], settings: FixedWeighting) -> None:
        self.weights: Row = np.array([settings.weights.get(task, 1.0) for task in tasks])

    def update(self, losses: Row, norms: Row) -> None:
        """Do nothing."""


class GradNorm:
    """GradNorm (Chen et al., ICML 2018, section 3 and algorithm 1): tasks that learn slowly get larger gradients.

    G_i = w_i · ‖∂L_i/∂z‖,  r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)),  target_i = mean(G) · r_i^alpha, held constant
    w_i ← w_i − lr · sign(G_i − target_i) · ‖∂L_i/∂z‖ / mean(G),  then Σ w_i = T

    The division by mean(G) is not in the paper, which leaves the step to Adam: like Adam's it does not depend on the
    losses' scale. L_i(0) is the first loss of the task on this device.
    """

    method = "gradnorm"
    needs_norms = True

    def __init__(self, tasks: Sequence[str], settings: GradNormWeighting, state: WeightingState | None) -> None:
        self._tasks = tuple(tasks)
        self._settings = settings
        self._first = np.full(len(self._tasks), np.nan)
        self.weights: Row = np.ones(len(self._tasks))
        if state is not None and state.method == self.method and state.values.keys() == set(tasks):
            self.weights[:] = [state.values[task] for task in self._tasks]
            self._first[:] = [state.first_losses.get(task, np.nan) for task in self._tasks]

    @property
    def state(self) -> WeightingState:
        """The weights, and the first losses of the tasks that have had labels."""
        first = {task: float(loss) for task, loss in zip(self._tasks, self._first, strict=True) if not np.isnan(loss)}
        return WeightingState(method=self.method, values=_by_task(self._tasks, self.weights), first_losses=first)

    def update(self, losses: Row, norms: Row) -> None:
        """Move the weights of the tasks that the batch has labels of, if these are at least two."""
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
    """Uncertainty weighting (Kendall et al., CVPR 2018, section 3.2): L = Σ exp(−s_i) · L_i + s_i with trained s_i.

    s_i ← s_i − lr · (1 − exp(−s_i) · L_i), from s_i = 0.
    """

    method = "uncertainty"
    needs_norms = False

    def __init__(self, tasks: Sequence[str], settings: UncertaintyWeighting, state: WeightingState | None) -> None:
        self._tasks = tuple(tasks)
        self._settings = settings
        self._s = np.zeros(len(self._tasks))
        if state is not None and state.method == self.method and state.values.keys() == set(tasks):
            self._s[:] = [state.values[task] for task in self._tasks]

    @property
    def weights(self) -> Row:
        """exp(−s), (T,)."""
        weights: Row = np.exp(-self._s)
        return weights

    @property
    def state(self) -> WeightingState:
        """The log variances."""
        return WeightingState(method=self.method, values=_by_task(self._tasks, self._s))

    def update(self, losses: Row, norms: Row) -> None:  # noqa: ARG002  (a seam's signature)
        """Take a step of gradient descent on s for the tasks that the batch has labels of."""
        slope = np.where(losses > 0, 1 - self.weights * losses, 0.0)
        self._s = np.clip(self._s - self._settings.lr * slope, -MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)


def make_weighting(
    tasks: Sequence[str], settings: TaskWeighting | None, state: WeightingState | None = None
) -> Weighting:
    """Return the weighting that a plan sets, else the plain sum.

    It goes on from `state` if method and tasks agree.
    """
    if isinstance(settings, GradNormWeighting):
        return GradNorm(tasks, settings, state)
    if isinstance(settings, UncertaintyWeighting):
        return Uncertainty(tasks, settings, state)
    return FixedWeights(tasks, settings or FixedWeighting())


def _by_task(tasks: Sequence[str], values: Row) -> dict[str, float]:
    return {task: float(value) for task, value in zip(tasks, values, strict=True)}
