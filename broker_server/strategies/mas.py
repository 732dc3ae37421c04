"""Merge, measure, split: MAS.

Measure the untrained model, train all tasks merged and probe affinities, measure, split by affinity, train each group
from the merged weights, measure. With one group there is nothing to split: it ends with the merged model. Each of its
parts can be replaced, so that the two compare: `find` finds the groups, `start` names the weights that they go on from,
`confidence` ends the merged phase early.

Source: MAS (Zhuang, Wen, Lyu, Zhang, ICCV 2023), section 3 and its released code.
"""

# coverage: every branch

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from broker_server.grouping.affinity import Affinities
from broker_server.grouping.alternatives import Groups, hierarchical, random_groups, worst
from broker_server.grouping.confidence import settled_split
from broker_server.grouping.search import Mode, SplitImpossible, TaskSplit, score, search
from broker_server.grouping.training_cost import candidates, choose, training_cost
from broker_server.strategies.planner import Measurements, Phase
from edge_runtime.wire.names import Tasks

Search = Callable[[Affinities], TaskSplit]
"""Groups from affinities. Raises SplitImpossible."""
Start = Literal["merged", "scratch"]
Schedule = Literal["restart", "continue"]


GroupingMethod = Literal["best", "hierarchical", "training_cost", "worst", "random"]


def grouping_search(method: GroupingMethod, groups: int, mode: Mode, *, seed: int, head_cost: float) -> Search:
    """Return a grouping method's search, such as the exact one, or MAS's step by step (section 4, hierarchical).

    `training_cost` takes the number of groups, up to `groups`, that gains most for the cost of training it, a head
    costing `head_cost` of the encoder. `worst` and `random` are what a good division is compared with.
    """
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


class Mas:
    """Merge, measure, split. Each task is trained for `merged_rounds` and `split_rounds` rounds.

    With `start` = scratch the groups begin with the bundle's weights and train for both. With `schedule` = continue
    there is one schedule of the learning rate over both phases, instead of one for each. With `confidence` above 0 the
    merged phase ends as soon as the best split was the best with that confidence in `confidence_rounds` rounds; the
    rounds that are left over are the groups'.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        merged_rounds: int,
        split_rounds: int,
        probe_rounds: int,
        groups: int,
        mode: Mode = "exactly",
        probe_from: int = 0,
        find: Search,
        start: Start = "merged",
        schedule: Schedule = "restart",
        confidence: float = 0.0,
        confidence_rounds: int = 3,
        seed: int = 0,
    ) -> None:
        if mode == "exactly" and groups > len(tasks):
            raise SplitImpossible(f"{len(tasks)} tasks cannot be split into exactly {groups} groups")
        self._tasks = tuple(sorted(tasks))
        self._merged_rounds = merged_rounds
        self._all_rounds = merged_rounds + split_rounds
        self._probe_from = probe_from
        self._probe_rounds = probe_rounds
        self._groups = groups
        self._mode: Mode = mode
        self._find = find
        self._start: Start = start
        self._schedule: Schedule = schedule
        self._confidence = confidence
        self._confidence_rounds = confidence_rounds
        self._seed = seed

    def next(self, done: Sequence[Phase], measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last. Raises SplitImpossible."""
        match [phase.name for phase in done]:
            case []:
                return self._test("before", (self._tasks,), None)
            case [*_, "before"]:
                return Phase(
                    name="merge",
                    work="train",
                    groups=(self._tasks,),
                    start=None,
                    rounds=self._merged_rounds,
                    probe_from=self._probe_from,
                    probe_rounds=self._probe_rounds,
                    schedule_rounds=self._all_rounds if self._schedule == "continue" else None,
                    open_ended=self._confidence > 0,
                )
            case [*_, "merge"]:
                return self._test("merged", (self._tasks,), "merge")
            case [*_, "merged"] if self._groups > 1:
                return self._split(measured)
            case [*_, "split"]:
                return self._test("end", done[-1].groups, "split")
        return None

    def may_end(self, phase: Phase, measured: Measurements) -> bool:
        """Return whether the split has settled, so that the merged phase may end."""
        if phase.name != "merge" or not self._confidence or measured.ledger is None:
            return False
        settled = settled_split(
            measured.ledger,
            self._groups,
            self._mode,
            least=self._confidence,
            rounds=self._confidence_rounds,
            seed=self._seed,
        )
        return settled is not None

    def _split(self, measured: Measurements) -> Phase:
        found = find_split(measured.affinities, self._find)
        merged = measured.rounds.get("merge", self._merged_rounds)
        is_scratch = self._start == "scratch"
        return Phase(
            name="split",
            work="train",
            groups=found.groups,
            start=None if is_scratch else "merge",
            rounds=self._all_rounds if is_scratch else self._all_rounds - merged,
            rounds_before=merged if self._schedule == "continue" and not is_scratch else 0,
            split=found,
        )

    @staticmethod
    def _test(name: str, groups: tuple[Tasks, ...], start: str | None) -> Phase:
        return Phase(name=name, work="evaluate", groups=groups, start=start, data_split="test")


def find_split(affinities: Affinities, find: Search) -> TaskSplit:
    """Return the groups that `find` makes of affinities. Raises SplitImpossible, also where pairs were not measured."""
    if not affinities.complete:
        raise SplitImpossible(
            "no device measured the affinities of all pairs of tasks, so there is nothing to split by: "
            "look at the devices' logs, or probe more rounds or batches"
        )
    return find(affinities)
