# ruff: noqa: N806  (T is the number of tasks)
"""The affinity ledger: every device's mean per round is kept, and averaged over devices, then over rounds.

A device's message is its mean over the batches it probed; devices count the same whatever their data (MAS, Zhuang et
al., ICCV 2023, section 3.2), and so do rounds. Counts and variances are kept, so that a split can say how sure it is.
A negative affinity is information: nothing is dropped or clipped. A pair that nobody measured is NaN, never 0.
"""

# coverage: every branch

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.messages import Affinity

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Affinities:
    """Averaged affinities, all arrays (T, T), [i][j] being i→j.

    `counts` is the probed batches behind each value, `variance` that of single batches within a device and a round
    (NaN where nobody probed two), `standard_error` how far `values` may be off (NaN where it cannot be told).
    """

    tasks: tuple[str, ...]
    values: Array
    counts: NDArray[np.int64]
    variance: Array
    standard_error: Array

    @property
    def complete(self) -> bool:
        """Return whether every pair was measured."""
        return bool((self.counts > 0).all())


class AffinityLedger:
    """Devices' affinities, by round and device; those that a device sends twice for a round count once."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self._rows: dict[tuple[int, str], Affinity] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, round_number: int, device: str, affinity: Affinity) -> bool:
        """Keep one device's affinities of one round; False if they are here already.

        Raises ValueError for a task that the ledger does not have, or a negative variance.
        """
        check(affinity, self.tasks)
        if (round_number, device) in self._rows:
            return False
        self._rows[round_number, device] = affinity
        return True

    @property
    def rounds(self) -> tuple[int, ...]:
        """The rounds in which something was measured, in order."""
        return tuple(sorted({round_number for round_number, _ in self._rows}))

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that measured something, in order."""
        return tuple(sorted({device for _, device in self._rows}))

    def between(self, first: int, last: int) -> "AffinityLedger":
        """Return a ledger of the rounds from `first` to `last`, both included."""
        part = AffinityLedger(self.tasks)
        part._rows = {key: row for key, row in self._rows.items() if first <= key[0] <= last}
        return part

    def result(self) -> Affinities:
        """Return the mean over devices, then over rounds; the order in which results came does not matter."""
        T = len(self.tasks)
        counts = np.zeros((T, T), np.int64)
        squares, freedom = np.zeros((T, T)), np.zeros((T, T))
        for _, row in sorted(self._rows.items()):
            where = self._where(row)
            counts[where] += row.count
            if row.variance is not None:
                squares[where] += np.asarray(row.variance) * (row.count - 1)
                freedom[where] += row.count - 1
        variance = np.divide(squares, freedom, out=np.full((T, T), np.nan), where=freedom > 0)
        means = [matrix for devices in self._means().values() for matrix in devices.values()]
        return Affinities(
            tasks=self.tasks,
            values=self.weighted(np.ones((1, len(self.devices))))[0],
            counts=counts,
            variance=variance,
            standard_error=_standard_error(means, variance, counts),
        )

    def weighted(self, weights: Array) -> Array:
        """Return the averaged affinities (W, T, T) by each of W weightings of the `devices`, (W, devices).

        A round in which nobody who counts has measured a pair does not count for it; NaN where no round does.
        """
        place = {device: i for i, device in enumerate(self.devices)}
        rounds = [
            _mean(np.stack(list(devices.values())), weights[:, [place[device] for device in devices]])
            for devices in self._means().values()
        ]
        T = len(self.tasks)
        if not rounds:
            return np.full((len(weights), T, T), np.nan)
        each = np.stack(rounds, axis=1)  # (W, rounds, T, T)
        return np.stack([_mean(values, np.ones((1, len(values))))[0] for values in each])

    def _means(self) -> dict[int, dict[str, Array]]:
        """Return each device's means in each round, (T, T), NaN for pairs that it did not measure; in order of both."""
        T = len(self.tasks)
        found: dict[int, dict[str, Array]] = {}
        for (round_number, device), row in sorted(self._rows.items()):
            means = np.full((T, T), np.nan)
            means[self._where(row)] = row.mean
            found.setdefault(round_number, {})[device] = means
        return found

    def _where(self, row: Affinity) -> tuple[NDArray[np.intp], ...]:
        places = [self.tasks.index(task) for task in row.tasks]
        return np.ix_(places, places)


def check(affinity: Affinity, tasks: Sequence[str]) -> None:
    """Raise ValueError unless the affinities are of tasks out of `tasks` (the message's schema did the rest)."""
    if odd := sorted(set(affinity.tasks) - set(tasks)):
        raise ValueError(f"affinities of task {odd[0]!r}, which was not asked for")
    if affinity.variance is not None and min(map(min, affinity.variance)) < 0:
        raise ValueError("affinities have a negative variance")


def _mean(matrices: Array, weights: Array) -> Array:
    """Return means (W, T, T) of N matrices (N, T, T) by W weightings (W, N), over those with each pair; else NaN."""
    here = np.isfinite(matrices).astype(np.float64)
    total = np.einsum("wn,nij->wij", weights, np.where(here, matrices, 0.0))
    weight = np.einsum("wn,nij->wij", weights, here)
    mean: Array = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    return mean


def _standard_error(means: list[Array], variance: Array, counts: NDArray[np.int64]) -> Array:
    """Return the standard error (T, T): from the spread between devices and rounds, or between the batches of one."""
    within: Array = np.sqrt(np.divide(variance, counts, out=np.full(variance.shape, np.nan), where=counts > 0))
    if not means:
        return within
    stack = np.stack(means)  # (N, T, T)
    here = np.isfinite(stack)
    number = here.sum(axis=0)  # (T, T)
    center = np.where(here, stack, 0.0).sum(axis=0) / np.maximum(number, 1)
    spread = np.where(here, (stack - center) ** 2, 0.0).sum(axis=0)
    between = np.sqrt(spread / np.maximum(number - 1, 1) / np.maximum(number, 1))
    error: Array = np.where(number >= 2, between, within)
    return error
