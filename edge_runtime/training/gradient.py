"""The proximal term and clipping of a gradient, summed over micro-batches, before the optimizer's step.

The proximal term comes first, as if it were part of the loss, and clipping second. Weight decay is the optimizer's and
is not clipped.
"""

# coverage: every branch

import math

import numpy as np

from edge_runtime.training.optimizer import BLOCK
from edge_runtime.wire.tensors import Vector


@np.errstate(over="ignore", invalid="ignore")  # training that diverges shows in its losses and weights
def add_proximal(gradient: Vector, weights: Vector, received: Vector, mu: float) -> None:
    """Add g ← g + mu · (w − w_received) in place; all (P,). FedProx (Li et al., MLSys 2020, section 3.2)."""
    scratch = np.empty(min(BLOCK, len(weights)), np.float32)
    for start in range(0, len(weights), BLOCK):
        part = slice(start, start + BLOCK)
        g, work = gradient[part], scratch[: len(gradient[part])]
        np.subtract(weights[part], received[part], out=work)
        work *= np.float32(mu)
        g += work


@np.errstate(over="ignore", invalid="ignore")
def clip(gradient: Vector, largest: float) -> float:
    """Scale the gradient (P,) in place to the Euclidean norm `largest` if its own is larger; return its own.

    The norm is over all parameters, encoder and heads (Pascanu et al., ICML 2013, algorithm 1).
    """
    norm = norm_of(gradient)
    if norm > largest:
        gradient *= np.float32(largest / norm)
    return norm


def norm_of(gradient: Vector) -> float:
    """Return the Euclidean norm, summed in float64."""
    scratch = np.empty(min(BLOCK, len(gradient)), np.float64)
    total = 0.0
    for start in range(0, len(gradient), BLOCK):
        part = gradient[start : start + BLOCK]
        work = scratch[: len(part)]
        np.multiply(part, part, out=work, dtype=np.float64)
        total += float(work.sum())
    return math.sqrt(total)
