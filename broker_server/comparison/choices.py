"""How well methods have chosen their groups: each beside all divisions that were trained in the same way.

Runs whose groups went on from the same weights for as many rounds are one family, whatever has chosen the groups. What
a family's runs have measured are the known divisions of a seed: all of them where the experiment trains every group,
else those that some method has trained.
"""

# coverage: every branch

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import msgspec

from broker_server.grouping.alternatives import Groups
from broker_server.grouping.gate import Gate, gate, spread
from broker_server.grouping.quality import ChoiceQuality, division_score, known_divisions, ordered, quality
from broker_server.grouping.statistics import Estimate, difference, estimate
from broker_server.simulation.summary import TOTAL, Summary

Runs = Mapping[int, Summary]
"""The runs of a method, by seed."""


class ChoiceResult(msgspec.Struct, frozen=True, kw_only=True):
    """A method's choices over its seeds: see ChoiceQuality. Shares are of the best known division's loss."""

    by_seed: dict[int, ChoiceQuality]
    regret: Estimate
    random_regret: Estimate
    """Of a random division, on average over all known ones."""
    gain: Estimate | None
    """The share of what the best known division gains over a random one."""
    correlation: Estimate | None
    """Of score and quality; None where nothing was scored."""


class Families:
    """The known divisions of an experiment."""

    def __init__(self, summaries: Iterable[Summary], tasks: Sequence[str]) -> None:
        self._tasks = tuple(sorted(tasks))
        self._losses: dict[tuple[str, int], dict[tuple[str, ...], dict[str, float]]] = {}
        for each in summaries:
            if each.last_split is not None:
                family = self._losses.setdefault((each.last_split.origin, each.seed), {})
                for group, losses in each.last_split.losses.items():
                    if losses.keys() == set(group.split("+")):
                        family[tuple(group.split("+"))] = losses
        self.known = cache(self._known)

    def _known(self, origin: str, seed: int, groups: int) -> dict[Groups, float]:
        """Return the loss of each known division of a family's seed into so many groups."""
        return known_divisions(self._losses.get((origin, seed), {}), self._tasks, groups)

    def choice(self, runs: Runs) -> ChoiceResult | None:
        """Return how well a method has chosen; None where it has no choice among two known divisions or more."""
        found = {seed: each for seed, run in sorted(runs.items()) if (each := self._quality(run)) is not None}
        regret = estimate(each.regret for each in found.values())
        random_regret = estimate(each.random / each.best - 1.0 for each in found.values())
        if regret is None or random_regret is None:
            return None
        return ChoiceResult(
            by_seed=found,
            regret=regret,
            random_regret=random_regret,
            gain=estimate(each.gain for each in found.values()),
            correlation=estimate(each.correlation for each in found.values()),
        )

    def _quality(self, run: Summary) -> ChoiceQuality | None:
        if run.last_split is None:
            return None
        chosen, scores = ordered(run.groups), run.last_split.group_scores
        known = self.known(run.last_split.origin, run.seed, len(chosen))
        if len(known) < 2 or chosen not in known:
            return None
        scored = {} if scores is None else {each: division_score(self._tasks, scores, each) for each in known}
        return quality(known, chosen, scored)

    def spread(self, found: Mapping[str, Runs]) -> tuple[float, float] | None:
        """Return how divisions and seeds spread, where most divisions are known: of a method's family and its groups.

        Of equals the first method counts.
        """
        best: tuple[int, tuple[float, float]] | None = None
        for runs in found.values():
            losses = {
                seed: self.known(run.last_split.origin, seed, len(run.groups))
                for seed, run in runs.items()
                if run.last_split is not None
            }
            if (apart := spread(losses)) is not None:
                common = len(set.intersection(*(set(each) for each in losses.values())))
                if best is None or common > best[0]:
                    best = common, apart
        return None if best is None else best[1]


def gate_of(found: Mapping[str, Runs], tasks: Sequence[str], families: Families) -> Gate:
    """Return the gate of an experiment: of its first methods that are all-in-one, one-by-one, and constant."""
    constant = _first(found, lambda run: run.baseline == "constant")
    merged = _first(found, lambda run: run.baseline is None and run.strategy == "all_in_one")
    alone = _first(found, lambda run: run.baseline is None and run.strategy == "one_by_one")
    learnt = {}
    for task in tasks:
        mine, floor = _loss(alone, task), _loss(constant, task)
        if mine is not None and floor is not None and floor.mean > 0:
            learnt[task] = mine.mean / floor.mean
    conflict = difference(_totals(merged), _totals(alone))
    return gate(conflict, learnt if len(learnt) == len(tasks) else None, families.spread(found))


def _first(found: Mapping[str, Runs], suits: Callable[[Summary], bool]) -> Runs:
    return next((runs for runs in found.values() if runs and all(map(suits, runs.values()))), {})


def _totals(runs: Runs) -> dict[int, float | None]:
    return {seed: (run.test_loss or {}).get(TOTAL) for seed, run in runs.items()}


def _loss(runs: Runs, task: str) -> Estimate | None:
    return estimate((run.test_loss or {}).get(task) for run in runs.values())
