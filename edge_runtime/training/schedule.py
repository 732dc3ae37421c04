"""The order of the samples and the learning rate: pure functions of a seed and a position."""

# coverage: every branch

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.uint32]
ORDER_BYTES = 4
"""Bytes of an epoch's order by sample."""


def order(seed: int, epoch: int, samples: int) -> Indices:
    """Return the samples of an epoch in their seeded order, (N,).

    It is that of `Generator.permutation` in half the memory.
    """
    indices = np.arange(samples, dtype=np.uint32)
    np.random.default_rng([seed, epoch]).shuffle(indices)
    return indices


def batches(indices: Indices, batch: int) -> Iterator[Indices]:
    """Return the batches of an epoch."""
    return (batch_at(indices, batch, step) for step in range(batch_count(len(indices), batch)))


def batch_at(indices: Indices, batch: int, step: int) -> Indices:
    """Return the batch of a step, of consecutive ones; the last may be smaller."""
    return indices[step * batch : (step + 1) * batch]


def batch_count(samples: int, batch: int) -> int:
    """Return the number of batches of an epoch."""
    return -(-samples // batch)


def learning_rate(initial: float, epoch: int, epochs: int) -> float:
    """Return the polynomially decayed rate, initial · (1 − epoch/epochs)^0.9 (the released code of MAS, by rounds)."""
    return float(initial * (1 - epoch / epochs) ** 0.9)
