"""How many groups are worth their cost: the number with the largest gain for what its training takes.

The gain of a division is its score above that of not splitting: by how much more the tasks of a group help one another
(relative loss for a unit of learning rate and step). Its cost is stated, not measured: what training the groups will
take, in joules or in seconds of computing. Both are estimates made before anything is trained, and the gain is one to
first order; they are for choosing between divisions, not for promising a loss.
"""

# coverage: every branch

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from broker_server.grouping.search import TIE, Mode, SplitImpossible, search

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A division, what it is expected to gain and to cost; the units are the caller's, the same for all offers."""

    groups: Groups
    gain: float
    cost: float

    @property
    def rate(self) -> float:
        """Gain for a unit of cost."""
        return self.gain / self.cost


def offers(
    tasks: Sequence[str], values: ArrayLike, most: int, cost: Callable[[Groups], float], mode: Mode = "exactly"
) -> tuple[Candidate, ...]:
    """The best division into each number of groups from 1 to `most`, with its gain over the first.

    `values` (T, T) are affinities i→j. Of "at most" and "overlap", numbers that find nothing new are left out. Raises
    SplitImpossible, also for a cost that is not above 0.
    """
    found: dict[Groups, Candidate] = {}
    start = search(tasks, values, 1, "exactly")
    for split in (start, *(search(tasks, values, groups, mode) for groups in range(2, most + 1))):
        spent = cost(split.groups)
        if not 0 < spent < float("inf"):
            raise SplitImpossible(f"{len(split.groups)} groups are said to cost {spent}, which is not a cost")
        found.setdefault(split.groups, Candidate(groups=split.groups, gain=split.score - start.score, cost=spent))
    return tuple(found.values())


def choose(offered: Sequence[Candidate]) -> Candidate:
    """The offer that gains most for a unit of cost; where none gains, or of equals, the first. Raises ValueError.

    The first of several offers is the one that the others' gains are over.
    """
    if not offered:
        raise ValueError("there is no offer to choose from")
    best = offered[0]
    for offer in offered[1:]:
        if offer.gain > TIE and offer.rate > best.rate:
            best = offer
    return best


def training_cost(groups: Groups, *, encoder: float, heads: Mapping[str, float]) -> float:
    """What training groups takes if each takes the encoder's cost once and that of its tasks' heads."""
    return sum(encoder + sum(heads[task] for task in group) for group in groups)
