"""Relations between devices: a vector of weights for each of them instead of one for all.

For T devices a rule gives coefficients C (T, 2T): the new weights of device i are Σ_j C_ij · x_j over the weights that
the devices have trained, x_1 … x_T, and those that they were sent, x_T+1 … x_2T. The coefficients depend on inner
products alone, so vectors are read twice, for these and for the sums, and one new vector is in memory at a time. State,
such as running statistics, is not combined: each device goes on with its own.

- fedu     the graph's Laplacian: w_k − step · Σ_l a_kl (w_k − w_l) (Dinh et al., 2021)
- mat_fl   soft groups by the cosines of what sets devices apart (Cai et al., CVPRW 2023)
"""

# coverage: every branch

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from broker_server.aggregation.fedavg import HEAD
from broker_server.aggregation.hca2 import Gates, HyperWeights, Pushed
from edge_runtime.wire.conflict import Matrix, combine, gram
from edge_runtime.wire.tensors import STATE, TensorTable, Vector


class Relation(Protocol):
    """A seam: rules differ in their coefficients, and in what they are for."""

    heads_alone: bool
    """True if only heads are a device's own, and all else is what the round has made for all."""

    def coefficients(self, devices: Sequence[str], inner: Matrix, /) -> Matrix:
        """Return the coefficients C (T, 2T), from the inner products (2T, 2T) of what was trained and what was sent."""
        ...


@dataclass(frozen=True, kw_only=True)
class Laplacian:
    """FedU: each device moves to its neighbours. Those of a device that has none named are all others.

    Source: Dinh et al., "A New Look and Convergence Rate of Federated Multi-Task Learning with Laplacian
    Regularization", IEEE TNNLS 2022, algorithm 1. `step` is its μ·R·η, which is divided by the number of neighbours.
    """

    step: float
    neighbours: Mapping[str, Sequence[str]]
    heads_alone = False

    def coefficients(self, devices: Sequence[str], _inner: Matrix) -> Matrix:
        """Return I − step · (the Laplacian)."""
        joined = np.zeros((len(devices), len(devices)))  # (T, T)
        for i, device in enumerate(devices):
            named = self.neighbours.get(device)
            for j, other in enumerate(devices):
                joined[i, j] = i != j and (named is None or other in named)
        degrees = np.maximum(joined.sum(axis=1, keepdims=True), 1)
        return _of_trained(laplacian_mixing(joined / degrees, self.step))


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """MaT-FL: each device's weights are a mean over those that are set apart from all in the same direction.

    Source: Cai et al., "Many-Task Federated Learning", CVPRW 2023. It compares weights, less their mean, as its code
    does; its text says updates.
    """

    threshold: float
    heads_alone = False

    def coefficients(self, devices: Sequence[str], inner: Matrix) -> Matrix:
        """Return the soft groups."""
        trained = inner[: len(devices), : len(devices)]
        return _of_trained(similarity_mixing(trained, self.threshold))


@dataclass(frozen=True, kw_only=True)
class OwnHeads:
    """Each device goes on with the heads that it has trained, and the server knows them (priors.py)."""

    heads_alone = True

    def coefficients(self, devices: Sequence[str], _inner: Matrix) -> Matrix:
        """Return I: nothing is mixed."""
        return _of_trained(np.eye(len(devices)))


def laplacian_mixing(joined: Matrix, step: float) -> Matrix:
    """Return the coefficients (T, T) of w_k − step · Σ_l a_kl (w_k − w_l), a being `joined` (T, T)."""
    mixing: Matrix = np.diag(1 - step * joined.sum(axis=1)) + step * joined
    return mixing


def similarity_mixing(inner: Matrix, threshold: float) -> Matrix:
    """Return the soft groups (T, T): max(0, cos + threshold) of the deviations from the mean, rows of sum 1.

    A vector that is the mean has no direction: its cosines with others count as 0. `threshold` is not negative.
    """
    centred = inner - inner.mean(axis=0) - inner.mean(axis=1, keepdims=True) + inner.mean()  # (T, T)
    lengths = np.sqrt(np.maximum(centred.diagonal(), 0))
    both = np.outer(lengths, lengths)
    cosines = np.divide(centred, both, out=np.eye(len(inner)), where=both > 0)
    near = np.maximum(0, cosines + threshold)
    near[np.diag_indices(len(near))] = 1 + threshold
    shares: Matrix = near / near.sum(axis=1, keepdims=True)
    return shares


def _of_trained(mixing: Matrix) -> Matrix:
    return np.concatenate([mixing, np.zeros_like(mixing)], axis=1)


class DeviceFold:
    """A round's weights by device, in a temporary file in `folder`, until a rule makes new ones of them."""

    def __init__(self, table: TensorTable, relation: Relation | HyperWeights, folder: Path) -> None:
        self._table = table
        self._relation = relation
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._devices: list[str] = []

    def fold(self, device: str, sent: Vector, trained: Vector) -> None:
        """Add one device's weights, (D,) each: those that it was sent, and those that it has trained."""
        for vector in (trained, sent):
            self._table.check(vector)
            self._file.write(np.ascontiguousarray(vector).data.cast("B"))
        self._devices.append(device)

    def result(self, shared: Vector) -> Iterator[tuple[str, Vector]]:
        """Yield each device's new weights (D,), in the order of folding; `shared` (D,) are those made for all."""
        assert not isinstance(self._relation, HyperWeights)
        with self._vectors() as (trained, sent):
            vectors = [*trained, *sent]
            own = self._own_range()
            front = slice(own.start, min(own.stop, self._table.parameters.size))
            parameters = [vector[front] for vector in vectors]
            coefficients = self._relation.coefficients(self._devices, gram(parameters)) if trained else ()
            for device, new, row in zip(self._devices, trained, coefficients, strict=True):
                made = np.array(shared)
                for where in (own, *self._own_state()):
                    made[where] = new[where]
                made[front] = combine(parameters, row)
                yield device, made

    def pushed(self, before: Mapping[str, tuple[Vector, Gates]]) -> Iterator[tuple[str, Pushed]]:
        """Yield each device's new weights by FedHCA², in the order of folding; `before` is what it left by device."""
        assert isinstance(self._relation, HyperWeights)
        with self._vectors() as (trained, sent):
            known = [before.get(device) for device in self._devices]
            pushed = self._relation.pushed(self._table, trained, sent, known) if trained else ()
            yield from zip(self._devices, pushed, strict=True)

    @contextmanager
    def _vectors(self) -> Iterator[tuple[list[Vector], list[Vector]]]:
        """Map the file: what was trained, and what was sent."""
        with self._file as file:
            file.flush()
            if not self._devices:
                yield [], []
                return
            rows = np.memmap(file, np.float32, "r", shape=(2 * len(self._devices), self._table.size))
            yield [*rows[::2]], [*rows[1::2]]

    def _own_range(self) -> slice:
        """Return the range of what is the devices' own: all of the vectors, or the heads' parameters, which adjoin."""
        assert not isinstance(self._relation, HyperWeights)
        if not self._relation.heads_alone:
            return slice(0, self._table.size)
        heads = [where for part, where in self._table.parts.items() if part.startswith(HEAD)]
        return slice(heads[0].start, heads[-1].stop)

    def _own_state(self) -> list[slice]:
        return [where for part, where in self._table.parts.items() if part.startswith(STATE + HEAD)]
