# ruff: noqa: N806  (T is the number of tasks)
"""The affinity ledger: every device's mean per round is kept, and averaged over devices, then over rounds.

A device's message is its mean over the batches it probed; devices count the same whatever their data (MAS, Zhuang et
al., ICCV 2023, section 3.2), and so do rounds. Counts and variances are kept, so that a split can say how sure it is.
A negative affinity is information: nothing is dropped or clipped. A pair that nobody measured is NaN, never 0.
"""

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
        """Whether every pair was measured."""
        return bool((self.counts > 0).all())


class AffinityLedger:
    """What devices measured, by round and device; what a device says twice about a round counts once."""

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

    def result(self) -> Affinities:
        """Mean over devices, then over rounds; the order in which devices were heard does not matter."""
        T = len(self.tasks)
        place = {task: i for i, task in enumerate(self.tasks)}
        by_round: dict[int, list[Array]] = {}
        counts = np.zeros((T, T), np.int64)
        squares, freedom = np.zeros((T, T)), np.zeros((T, T))
        for (round_number, _), row in sorted(self._rows.items()):
            where = np.ix_([place[t] for t in row.tasks], [place[t] for t in row.tasks])
            means = np.full((T, T), np.nan)
            means[where] = row.mean
            by_round.setdefault(round_number, []).append(means)
            counts[where] += row.count
            if row.variance is not None:
                squares[where] += np.asarray(row.variance) * (row.count - 1)
                freedom[where] += row.count - 1
        rounds = [_mean(devices) for devices in by_round.values()]
        values = _mean(rounds) if rounds else np.full((T, T), np.nan)
        variance = np.divide(squares, freedom, out=np.full((T, T), np.nan), where=freedom > 0)
        return Affinities(
            tasks=self.tasks,
            values=values,
            counts=counts,
            variance=variance,
            standard_error=_standard_error([m for devices in by_round.values() for m in devices], variance, counts),
        )


def check(affinity: Affinity, tasks: Sequence[str]) -> None:
    """Raises ValueError unless the affinities are of tasks out of `tasks` (the message's schema did the rest)."""
    if odd := sorted(set(affinity.tasks) - set(tasks)):
        raise ValueError(f"affinities of task {odd[0]!r}, which was not asked for")
    if affinity.variance is not None and min(map(min, affinity.variance)) < 0:
        raise ValueError("affinities have a negative variance")


def _mean(matrices: list[Array]) -> Array:
    """Mean of those that measured each pair; NaN where none did."""
    stack = np.stack(matrices)  # (N, T, T)
    here = np.isfinite(stack)
    total, number = np.where(here, stack, 0.0).sum(axis=0), here.sum(axis=0)
    mean: Array = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return mean


def _standard_error(means: list[Array], variance: Array, counts: NDArray[np.int64]) -> Array:
    """From the spread between devices and rounds where two or more measured, else from that between batches."""
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
