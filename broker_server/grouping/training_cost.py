"""The number of groups with the largest gain for the cost of their training.

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
    """A division with its expected gain and cost; the units are the caller's, the same for all candidates."""

    groups: Groups
    gain: float
    cost: float

    @property
    def rate(self) -> float:
        """Gain for a unit of cost."""
        return self.gain / self.cost


def candidates(
    tasks: Sequence[str], values: ArrayLike, most: int, cost: Callable[[Groups], float], mode: Mode = "exactly"
) -> tuple[Candidate, ...]:
    """Return the best division into each number of groups from 1 to `most`, with its gain over the first.

    `values` (T, T) are affinities i→j. Of "at most" and "overlap", numbers that find nothing new are left out. Raises
    SplitImpossible, also for a cost that is not above 0.
    """
    found: dict[Groups, Candidate] = {}
    start = search(tasks, values, 1, "exactly")
    for split in (start, *(search(tasks, values, groups, mode) for groups in range(2, most + 1))):
        total = cost(split.groups)
        if not 0 < total < float("inf"):
            raise SplitImpossible(
                f"{len(split.groups)} groups cost {total} by the given function: a cost is a number above 0"
            )
        found.setdefault(split.groups, Candidate(groups=split.groups, gain=split.score - start.score, cost=total))
    return tuple(found.values())


def choose(found: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the largest gain for its cost, or the first where none gains. Raises ValueError.

    The first candidate is the one over which the others gain. Of equals the first is taken.
    """
    if not found:
        raise ValueError("there is no candidate to choose from")
    best = found[0]
    for candidate in found[1:]:
        if candidate.gain > TIE and candidate.rate > best.rate:
            best = candidate
    return best


def training_cost(groups: Groups, *, encoder: float, heads: Mapping[str, float]) -> float:
    """Return the cost of training groups if each takes the encoder's cost once and that of its tasks' heads."""
    return sum(encoder + sum(heads[task] for task in group) for group in groups)
