"""The confidence in a split: the chance that other devices, or the same ones again, would give the same groups.

By devices: affinities differ between devices because their data do. So devices are drawn again, as many as there
are, with replacement; a device that is drawn counts as often with all that it measured, in every round (the bootstrap
over clusters: Efron, Ann. Stat. 1979; Davison and Hinkley, 1997, section 3.8). The confidence is the share of the draws
in which the same groups are the best. With few devices it is too large: it cannot show what none of them has.

By errors: where only means and their standard errors are at hand, the affinities themselves are drawn.

A split has settled when it was the best with some confidence after each of the last rounds: then a federation may
split by it instead of after a fixed number of rounds.
"""

# coverage: every branch

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from broker_server.grouping.affinity import AffinityLedger
from broker_server.grouping.search import Mode, TaskSplit, check, search

LEAST_DEVICES = 2
"""Of one device every draw is the same."""


@dataclass(frozen=True, kw_only=True)
class SplitConfidence:
    """The best split by the measurements, and its confidence, 0 to 1; None where fewer than two devices measured."""

    split: TaskSplit
    confidence: float | None


def by_devices(ledger: AffinityLedger, groups: int, mode: Mode, *, draws: int = 200, seed: int = 0) -> SplitConfidence:
    """Return the best split of a ledger, and the share of seeded draws of its devices in which its groups win.

    A draw in which nobody measured some pair counts against it. Raises SplitImpossible, also if the ledger has no
    value for a pair.
    """
    tasks, devices = ledger.tasks, ledger.devices
    found = search(tasks, ledger.result().values, groups, mode)
    if len(devices) < LEAST_DEVICES:
        return SplitConfidence(split=found, confidence=None)
    random = np.random.default_rng(seed)
    times = random.multinomial(len(devices), [1 / len(devices)] * len(devices), size=draws)  # (draws, devices)
    same = sum(
        bool(np.isfinite(values).all()) and search(tasks, values, groups, mode).groups == found.groups
        for values in ledger.weighted(times.astype(np.float64))
    )
    return SplitConfidence(split=found, confidence=same / draws)


def settled_split(
    ledger: AffinityLedger,
    groups: int,
    mode: Mode,
    *,
    least: float,
    rounds: int,
    draws: int = 200,
    seed: int = 0,
) -> SplitConfidence | None:
    """Return the best split, if it was that with a confidence of `least` after each of the last `rounds` probed rounds.

    After a round the mean over all rounds of the ledger up to it counts; give `ledger.between(…)` to leave the first
    ones out. None while it has not settled, and while pairs are unmeasured. Raises SplitImpossible.
    """
    probed = ledger.rounds
    if not ledger.result().complete or len(probed) < rounds:
        return None
    last = by_devices(ledger, groups, mode, draws=draws, seed=seed)
    for end in reversed(probed[-rounds:]):
        before = ledger.between(probed[0], end)
        if not before.result().complete:
            return None
        earlier = by_devices(before, groups, mode, draws=draws, seed=seed)
        if earlier.split.groups != last.split.groups or earlier.confidence is None or earlier.confidence < least:
            return None
    return last


def by_errors(
    tasks: Sequence[str],
    values: ArrayLike,
    standard_error: ArrayLike,
    split: TaskSplit,
    *,
    groups: int,
    draws: int = 100,
    seed: int = 0,
) -> float:
    """Return the confidence in a split, 0 to 1: the share of `draws` that it wins when affinities vary by their errors.

    `standard_error` is (T, T); affinities are drawn as independent normal values. Raises SplitImpossible.
    """
    array, error = check(tasks, values), check(tasks, standard_error)
    random = np.random.default_rng(seed)
    same = sum(
        set(search(tasks, array + error * random.standard_normal(array.shape), groups, split.mode).groups)
        == set(split.groups)
        for _ in range(draws)
    )
    return same / draws
