"""Weighted sums of flat vectors, which averages are made of: here, or shard by shard wherever an executor runs tasks.

A sum is float64, and its elements know nothing of each other: each adds up the updates in the order in which they come.
So shards of a sum are chains of partial folds that run side by side, and neither the number of workers nor where they
are changes a bit of it.
"""

# coverage: every branch

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.tensors import Vector

Sum = NDArray[np.float64]
Weights = Sequence[tuple[slice, int]]
"""Slices of a vector with the weight of each."""
SHARD = 1 << 20
"""Elements of a shard: 8 MiB of a sum."""
BATCH = 8
"""Updates that a task folds into a shard."""


class SumsLost(RuntimeError):
    """What was to fold a part of a sum did not."""


class Sums(Protocol):
    """A seam between the sum and where it is made."""

    def add(self, vector: Vector, weights: Weights) -> None:
        """Add a vector, each slice with its weight."""
        ...

    def total(self) -> Sum:
        """Return the sum."""
        ...


def empty(size: int) -> Sum:
    """Return the sum of nothing: minus zero, the only start from which a single -0.0 comes out as it went in."""
    return np.full(size, -0.0, np.float64)


def add_to(total: Sum, vector: Vector, weights: Weights) -> None:
    """Add a vector to a sum, in place."""
    for where, weight in weights:
        total[where] += np.multiply(vector[where], weight, dtype=np.float64)


class LocalSums:
    """A sum in this process."""

    def __init__(self, size: int) -> None:
        self._total = empty(size)

    def add(self, vector: Vector, weights: Weights) -> None:
        """Add a vector."""
        add_to(self._total, vector, weights)

    def total(self) -> Sum:
        """Return the sum."""
        return self._total


class ShardedSums:
    """A sum whose shards are folded by tasks of an executor, BATCH updates each. Methods raise SumsLost."""

    def __init__(self, size: int, executor: Executor, *, shard: int = SHARD) -> None:
        self._executor = executor
        self._shards = [slice(start, min(start + shard, size)) for start in range(0, size, shard)]
        self._partial: list[Sum | Future[Sum]] = [empty(each.stop - each.start) for each in self._shards]
        self._waiting: list[tuple[Vector, Weights]] = []

    def add(self, vector: Vector, weights: Weights) -> None:
        """Add a vector, with others of its batch."""
        self._waiting.append((vector, weights))
        if len(self._waiting) == BATCH:
            self._fold()

    def total(self) -> Sum:
        """Return the sum, when all of it is there."""
        if self._waiting:
            self._fold()
        return np.concatenate([self._done(number) for number in range(len(self._shards))])

    def _fold(self) -> None:
        """Give each shard's part of the batch to a task, once the batch before it is in the shard."""
        batch, self._waiting = self._waiting, []
        for number, shard in enumerate(self._shards):
            pieces = [(vector[shard], _within(shard, weights)) for vector, weights in batch]
            before = self._done(number)
            try:
                self._partial[number] = self._executor.submit(partial_fold, before, pieces)
            except Exception as exc:
                raise SumsLost(str(exc)) from exc

    def _done(self, number: int) -> Sum:
        found = self._partial[number]
        if not isinstance(found, Future):
            return found
        try:
            return found.result()
        except Exception as exc:  # whatever an executor's own failures are
            raise SumsLost(str(exc)) from exc


def partial_fold(total: Sum, pieces: Sequence[tuple[Vector, Weights]]) -> Sum:
    """Return a shard's sum with some more updates in it: what a task does."""
    folded = total.copy()
    for vector, weights in pieces:
        add_to(folded, vector, weights)
    return folded


def _within(shard: slice, weights: Weights) -> list[tuple[slice, int]]:
    """Return what of some slices is in a shard, counted from its start."""
    found = ((max(where.start, shard.start), min(where.stop, shard.stop), weight) for where, weight in weights)
    return [(slice(start - shard.start, stop - shard.start), weight) for start, stop, weight in found if start < stop]
