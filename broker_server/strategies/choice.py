"""How MAS chooses its groups: by affinities, by trials, or by trials of what affinities prefer.

By affinities: the groups follow from what was probed in the merged phase; `weighted` asks for the merged model's
validation losses as well. By trials: groups are trained from the merged weights for a few rounds, as ordinary rounds
of the devices, and their validation losses decide. `trials` tries every single task, every pair, and all tasks, and
estimates other groups from their pairs (HOA's rule: Standley et al., ICML 2020, section 5.2). `hybrid` tries the groups
of the divisions that weighted affinities like best, and estimates nothing. What all tasks together lose after as
many rounds is what merging on would give.
"""

# coverage: every branch

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal, Protocol

from broker_server.grouping.affinity import Affinities
from broker_server.grouping.alternatives import Groups, best_divisions, hierarchical, random_groups, worst
from broker_server.grouping.pairs import Pairs, loss_scores
from broker_server.grouping.quality import known_divisions
from broker_server.grouping.search import (
    Mode,
    SplitImpossible,
    TaskSplit,
    Values,
    group_mask,
    score,
    search,
    search_table,
    task_scores,
)
from broker_server.grouping.training_cost import candidates, choose, training_cost
from broker_server.grouping.weighted_affinity import weighted_scores
from broker_server.strategies.planner import TRIED, WEIGHED, Measurements
from edge_runtime.wire.names import Tasks

Search = Callable[[Affinities], TaskSplit]
"""Groups from affinities. Raises SplitImpossible."""
GroupingMethod = Literal["best", "hierarchical", "training_cost", "weighted", "trials", "hybrid", "worst", "random"]
Losses = Mapping[Tasks, Mapping[str, float]]


class Choice(Protocol):
    """A seam: what a choice wants measured after the merged phase, and the choice."""

    @property
    def needs_losses(self) -> bool:
        """Whether the merged model is to be measured on validation data."""
        ...

    def trials(self, measured: Measurements, /) -> tuple[Tasks, ...]:
        """Return the groups to try from the merged weights; none for no trials. Raises SplitImpossible."""
        ...

    def choose(self, measured: Measurements, /) -> TaskSplit:
        """Return the groups. Raises SplitImpossible."""
        ...


@dataclass(frozen=True)
class ByAffinity:
    """The groups that a search makes of affinities."""

    find: Search
    needs_losses: bool = False

    def trials(self, _measured: Measurements) -> tuple[Tasks, ...]:
        """Return none."""
        return ()

    def choose(self, measured: Measurements) -> TaskSplit:
        """Return the groups. Raises SplitImpossible."""
        return find_split(measured.affinities, self.find)


@dataclass(frozen=True)
class ByWeightedAffinity:
    """The groups with the largest expected decrease of the total loss."""

    groups: int
    mode: Mode
    needs_losses: bool = True

    def trials(self, _measured: Measurements) -> tuple[Tasks, ...]:
        """Return none."""
        return ()

    def choose(self, measured: Measurements) -> TaskSplit:
        """Return the groups. Raises SplitImpossible."""
        table = weighted_table(measured)
        return search_table(measured.affinities.tasks, table, self.groups, self.mode, smallest=2).among(table)


@dataclass(frozen=True)
class ByTrials:
    """The groups with the least estimated loss, from trials of single tasks, pairs, and all tasks."""

    groups: int
    mode: Mode
    needs_losses: bool = False

    def trials(self, measured: Measurements) -> tuple[Tasks, ...]:
        """Return every single task, every pair, and all tasks."""
        tasks = measured.affinities.tasks
        tried = (*((task,) for task in tasks), *combinations(tasks, 2), tasks)
        return tuple(dict.fromkeys(tried))

    def choose(self, measured: Measurements) -> TaskSplit:
        """Return the groups. Raises SplitImpossible, also where devices have no validation data."""
        tasks, losses = measured.affinities.tasks, tried_losses(measured)
        table = loss_scores(tasks, *singles_and_pairs(losses))
        if tasks in losses:  # measured, so that it need not be estimated
            table[group_mask(tasks, tasks)] = [-losses[tasks][task] for task in tasks]
        return search_table(tasks, table, self.groups, self.mode).among(table)


@dataclass(frozen=True)
class ByShortlist:
    """The division with the least loss in trials, of the `shortlist` that weighted affinities like best."""

    groups: int
    shortlist: int
    needs_losses: bool = True

    def trials(self, measured: Measurements) -> tuple[Tasks, ...]:
        """Return the groups of the shortlist, and all tasks. Raises SplitImpossible."""
        tasks = measured.affinities.tasks
        short = best_divisions(tasks, weighted_table(measured), self.groups, self.shortlist)
        return tuple(dict.fromkeys([*(group for groups in short for group in groups), tasks]))

    def choose(self, measured: Measurements) -> TaskSplit:
        """Return the groups. Raises SplitImpossible, also where devices have no validation data."""
        tasks = measured.affinities.tasks
        known = known_divisions(tried_losses(measured), tasks, self.groups)
        if not known:
            raise SplitImpossible("no division was tried with validation data: the devices have none, or answered none")
        best = min(known, key=known.__getitem__)
        return TaskSplit(groups=best, score=-known[best] / len(tasks), mode="exactly")


def choice_of(
    method: GroupingMethod, groups: int, mode: Mode, *, seed: int, head_cost: float, shortlist: int
) -> Choice:
    """Return a method's choice.

    `hierarchical` halves step by step (MAS, section 4); `training_cost` takes the number of groups, up to `groups`,
    that gains most for the cost of training it, a head costing `head_cost` of the encoder. `worst` and `random` are
    what a good division is compared with.
    """
    match method:
        case "trials":
            return ByTrials(groups, mode)
        case "hybrid":
            return ByShortlist(groups, shortlist)
        case "weighted":
            return ByWeightedAffinity(groups, mode)
        case _:
            return ByAffinity(_search(method, groups, mode, seed=seed, head_cost=head_cost))


def _search(
    method: Literal["best", "hierarchical", "training_cost", "worst", "random"],
    groups: int,
    mode: Mode,
    *,
    seed: int,
    head_cost: float,
) -> Search:
    match method:
        case "best":
            return lambda found: search(found.tasks, found.values, groups, mode)
        case "hierarchical":
            steps: Literal["exactly", "at_most"] = "at_most" if mode == "at_most" else "exactly"
            return lambda found: hierarchical(found.tasks, found.values, groups, steps)
        case "worst":
            return lambda found: worst(found.tasks, found.values, groups)
        case "random":
            return lambda found: _scored(found, random_groups(found.tasks, groups, seed))
        case _:
            return lambda found: _best_for_its_cost(found, groups, head_cost)


def _scored(found: Affinities, groups: Groups) -> TaskSplit:
    return TaskSplit(groups=groups, score=score(found.tasks, found.values, groups), mode="exactly")


def _best_for_its_cost(found: Affinities, most: int, head_cost: float) -> TaskSplit:
    heads = dict.fromkeys(found.tasks, head_cost)
    costs = partial(training_cost, encoder=1.0, heads=heads)
    return _scored(found, choose(candidates(found.tasks, found.values, most, costs)).groups)


def find_split(affinities: Affinities, find: Search) -> TaskSplit:
    """Return the groups that `find` makes of affinities. Raises SplitImpossible, also where pairs were not measured."""
    return find(_complete(affinities)).among(task_scores(affinities.values))


def weighted_table(measured: Measurements) -> Values:
    """Return the scores (2^T, T) of tasks in groups by weighted affinities. Raises SplitImpossible."""
    affinities = _complete(measured.affinities)
    losses = measured.losses.get(WEIGHED, {}).get(affinities.tasks, {})
    return weighted_scores(affinities.tasks, affinities.values, losses)


def _complete(affinities: Affinities) -> Affinities:
    if not affinities.complete:
        raise SplitImpossible(
            "no device measured the affinities of all pairs of tasks, so there is nothing to split by: "
            "look at the devices' logs, or probe more rounds or batches"
        )
    return affinities


def tried_losses(measured: Measurements) -> Losses:
    """Return the validation losses of the groups that were tried, of those of which every task was measured."""
    tried = measured.losses.get(TRIED, {})
    return {group: losses for group, losses in tried.items() if losses.keys() == set(group)}


def singles_and_pairs(losses: Losses) -> tuple[dict[str, float], Pairs]:
    """Return the losses of the groups of one task and of two, in the form of `pairs`."""
    alone = {group[0]: found[group[0]] for group, found in losses.items() if len(group) == 1}
    pairs = {(g[0], g[1]): (found[g[0]], found[g[1]]) for g, found in losses.items() if len(g) == 2}
    return alone, pairs
