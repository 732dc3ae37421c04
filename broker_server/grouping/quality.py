"""The quality of a choice of groups: how it stands among the other divisions whose losses are known.

The loss of a division is the sum of its tasks' losses, each in its group. Regret is what a choice loses beyond the best
known division into as many groups; a random choice is the mean over all known ones, which is what any number of draws
comes to. A score is worth something if divisions that it prefers lose less: the correlation says so.
"""

# coverage: every branch

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from broker_server.grouping.alternatives import Groups
from broker_server.grouping.search import TIE, group_mask

GroupLosses = Mapping[tuple[str, ...], Mapping[str, float]]
"""By group, its tasks in order: the loss of each task when the group was trained."""


class ChoiceQuality(msgspec.Struct, frozen=True, kw_only=True):
    """A choice among `known` divisions into as many groups. Losses are totals over all tasks."""

    known: int
    rank: int
    """1 for the best; divisions that lose the same share the better rank."""
    loss: float
    best: float
    random: float
    """The mean over the known divisions, which a random choice has on average."""
    worst: float
    correlation: float | None
    """Of the scores by which was chosen with quality (minus the loss), over the known divisions; None without any."""

    @property
    def regret(self) -> float:
        """The loss beyond the best known division's, as a share of the latter."""
        return self.loss / self.best - 1.0

    @property
    def gain(self) -> float | None:
        """The share of what the best known division gains over a random one; None where all lose the same."""
        possible = self.random - self.best
        return (self.random - self.loss) / possible if possible > TIE else None


def ordered(groups: Iterable[Iterable[str]]) -> Groups:
    """Return a division in the form that all equal divisions have: tasks and groups by name."""
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def known_divisions(losses: GroupLosses, tasks: Iterable[str], groups: int) -> dict[Groups, float]:
    """Return the total loss of every division into exactly `groups` groups that were all measured."""
    totals = {tuple(sorted(group)): sum(found[task] for task in group) for group, found in losses.items()}
    covers = _covers(frozenset(tasks), groups, sorted(totals))
    return {ordered(cover): sum(totals[group] for group in cover) for cover in covers}


def _covers(
    rest: frozenset[str], groups: int, known: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Return the divisions of `rest` into `groups` of the known groups: each holds the first task that is left."""
    if not rest or not groups:
        if not rest and not groups:
            yield ()
        return
    first = min(rest)
    for group in known:
        if first in group and rest.issuperset(group):
            for others in _covers(rest.difference(group), groups - 1, known):
                yield (group, *others)


def division_score(tasks: Sequence[str], group_scores: Sequence[float], groups: Iterable[Sequence[str]]) -> float:
    """Return the score of a division from those of groups, (2^T,), a group being a bit mask over the tasks."""
    return sum(group_scores[group_mask(tasks, group)] for group in groups) / len(tasks)


def quality(losses: Mapping[Groups, float], chosen: Groups, scores: Mapping[Groups, float]) -> ChoiceQuality:
    """Return the quality of the division `chosen`, one of the known `losses`. Raises KeyError if it is not.

    `scores` are those by which was chosen, larger being better; divisions without one do not count for the correlation.
    """
    values = np.array(list(losses.values()))
    loss = losses[chosen]
    return ChoiceQuality(
        known=len(losses),
        rank=1 + int((values < loss - TIE).sum()),
        loss=loss,
        best=float(values.min()),
        random=float(values.mean()),
        worst=float(values.max()),
        correlation=_correlation([(scores[each], -losses[each]) for each in losses if each in scores]),
    )


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Pearson's correlation; None below three pairs, or where one side is constant."""
    if len(pairs) < 3:
        return None
    array = np.array(pairs)  # (N, 2)
    if (array.std(axis=0) <= TIE).any():
        return None
    return float(np.corrcoef(array.T)[0, 1])
