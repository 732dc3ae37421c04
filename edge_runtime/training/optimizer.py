"""Stochastic gradient descent with momentum and weight decay, in place on flat vectors.

    v ← momentum · v + (g + decay · w)
    w ← w − lr · v

as in PyTorch's SGD. The vectors are worked through in blocks that fit the cache, so no temporary is as long as they.
"""

from dataclasses import dataclass

import numpy as np

from edge_runtime.wire.tensors import Vector

BLOCK = 16_384
"""Elements in a block: three float32 blocks stay in a first-level cache pair of 256 KiB."""


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """One step's settings."""

    lr: float
    momentum: float
    weight_decay: float

    @np.errstate(over="ignore", invalid="ignore")  # training that diverges shows in its losses and weights
    def step(self, weights: Vector, gradient: Vector, velocity: Vector) -> None:
        """Update `weights` and `velocity` (D,) in place. `gradient` is used as scratch."""
        lr, momentum, decay = np.float32(self.lr), np.float32(self.momentum), np.float32(self.weight_decay)
        scratch = np.empty(min(BLOCK, len(weights)), np.float32)
        for start in range(0, len(weights), BLOCK):
            part = slice(start, start + BLOCK)
            w, g, v = weights[part], gradient[part], velocity[part]
            work = scratch[: len(w)]
            np.multiply(w, decay, out=work)
            g += work
            v *= momentum
            v += g
            np.multiply(v, lr, out=work)
            w -= work


@np.errstate(over="ignore", invalid="ignore")
def look_ahead(weights: Vector, gradient: Vector, *, lr: float, weight_decay: float, out: Vector) -> None:
    """One plain step without momentum into `out`: w − lr · (g + decay · w)."""
    np.multiply(weights, np.float32(weight_decay), out=out)
    out += gradient
    out *= np.float32(-lr)
    out += weights
