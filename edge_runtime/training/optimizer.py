"""The optimizers, in place on flat vectors: stochastic gradient descent and AdamW.

An optimizer's state is one flat vector with a table of its own, zero at the beginning; it is saved, checkpointed and
compared like any other. The vectors are processed in blocks that fit the cache, so no temporary array is as long as
they are. A gradient may be the sum over micro-batches; there is one step for all of them.
"""

# coverage: every branch

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import TensorTable, Vector

Ranges = Sequence[slice]
"""Parts of a vector, in order."""
BLOCK = 16_384
"""Elements in a block: three float32 blocks stay in a first-level cache pair of 256 KiB."""


class Optimizer(Protocol):
    """A seam: the trainer takes a step in the same way with every optimizer."""

    def table(self, parameters: TensorTable) -> TensorTable:
        """Return the layout of the state for these parameters."""
        ...

    def step(self, weights: Vector, gradient: Vector, state: Vector, trained: Ranges | None = None) -> None:
        """Update `weights` (P,) and `state` in place. `gradient` (P,) is used as scratch.

        With `trained`, the weights outside of these ranges, and their state, stay as they are.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Momentum and weight decay as in PyTorch's SGD. The state is the velocity v, (P,).

    v ← momentum · v + (g + decay · w)
    w ← w − lr · v
    """

    lr: float
    momentum: float
    weight_decay: float

    def table(self, parameters: TensorTable) -> TensorTable:
        """Return the parameters' own table: the velocity has the same layout."""
        return parameters

    @np.errstate(over="ignore", invalid="ignore")  # training that diverges shows in its losses and weights
    def step(self, weights: Vector, gradient: Vector, state: Vector, trained: Ranges | None = None) -> None:
        """Update `weights` and the velocity (P,) in place. `gradient` is used as scratch."""
        lr, momentum, decay = np.float32(self.lr), np.float32(self.momentum), np.float32(self.weight_decay)
        scratch = np.empty(min(BLOCK, len(weights)), np.float32)
        for part in blocks(trained, len(weights)):
            w, g, v = weights[part], gradient[part], state[part]
            work = scratch[: len(w)]
            np.multiply(w, decay, out=work)
            g += work
            v *= momentum
            v += g
            np.multiply(v, lr, out=work)
            w -= work


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2), as PyTorch's. The state is m, v and t, (2P + 1,).

    m ← beta1 · m + (1 − beta1) · g             m̂ = m / (1 − beta1^t)
    v ← beta2 · v + (1 − beta2) · g²            v̂ = v / (1 − beta2^t)
    w ← w − lr · (m̂ / (√v̂ + epsilon) + decay · w)

    t counts the steps in the moments. A float32 counts to 2^24, far beyond the step where both corrections are 1.
    """

    lr: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    def table(self, parameters: TensorTable) -> TensorTable:
        """Return the table of both moments, each in the layout of the parameters, and of the count."""
        shapes: dict[str, tuple[int, ...]] = {"steps": (1,)}
        for tensor in parameters.tensors:
            shapes |= {f"first.{tensor.name}": tensor.shape, f"second.{tensor.name}": tensor.shape}
        return TensorTable.of(shapes)

    @np.errstate(over="ignore", invalid="ignore")
    def step(self, weights: Vector, gradient: Vector, state: Vector, trained: Ranges | None = None) -> None:
        """Update `weights` (P,) and `state` (2P + 1,) in place. `gradient` is used as scratch."""
        size = len(weights)
        first, second = state[:size], state[size : 2 * size]
        state[-1] += 1
        steps = float(state[-1])
        rate = np.float32(self.lr / (1 - self.beta1**steps))
        root = np.float32(math.sqrt(1 - self.beta2**steps))
        keep = np.float32(1 - self.lr * self.weight_decay)
        beta1, beta2, epsilon = np.float32(self.beta1), np.float32(self.beta2), np.float32(self.epsilon)
        new1, new2 = np.float32(1 - self.beta1), np.float32(1 - self.beta2)
        scratch = np.empty(min(BLOCK, size), np.float32)
        for part in blocks(trained, size):
            w, g, m, v = weights[part], gradient[part], first[part], second[part]
            work = scratch[: len(w)]
            m *= beta1
            np.multiply(g, new1, out=work)
            m += work
            v *= beta2
            g *= g
            g *= new2
            v += g
            np.sqrt(v, out=g)
            g /= root
            g += epsilon
            np.divide(m, g, out=work)
            work *= rate
            w *= keep
            w -= work


def blocks(ranges: Ranges | None, size: int) -> Iterator[slice]:
    """Return these ranges of a vector of this size, or all of it, in blocks."""
    for whole in (slice(0, size),) if ranges is None else ranges:
        for start in range(whole.start, whole.stop, BLOCK):
            yield slice(start, min(start + BLOCK, whole.stop))


def make_optimizer(settings: Training) -> Optimizer:
    """Return the optimizer that a plan sets."""
    if settings.optimizer == "adamw":
        return AdamW(
            lr=settings.lr,
            beta1=settings.momentum,
            beta2=settings.beta2,
            epsilon=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
    return Sgd(lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


@np.errstate(over="ignore", invalid="ignore")
def look_ahead(weights: Vector, gradient: Vector, *, lr: float, weight_decay: float, out: Vector) -> None:
    """Write one plain step without momentum to `out`: w − lr · (g + decay · w)."""
    np.multiply(weights, np.float32(weight_decay), out=out)
    out += gradient
    out *= np.float32(-lr)
    out += weights
