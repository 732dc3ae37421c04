"""Every group: what the best possible choice of groups would come to, and what any other choice is worth beside it.

Train all tasks merged, then every group of tasks there is from the merged weights, for as many rounds as a split has;
the division with the least validation loss is the choice, and its groups are trained as MAS trains them. It takes
2^T - 1 groups: a yardstick for few tasks and small models, not a way to train. All groups are measured on test data,
too, so that a comparison knows every division's loss; the choice does not see it.
"""

# coverage: every branch

from collections.abc import Sequence
from itertools import combinations

from broker_server.grouping.quality import known_divisions
from broker_server.grouping.search import SplitImpossible, TaskSplit
from broker_server.strategies.planner import Measurements, Phase
from edge_runtime.wire.messages import DataSplit
from edge_runtime.wire.names import Tasks

MOST_TASKS = 8
"""More would be over 255 groups."""
SURVEY = "survey"
"""The phase that measures all groups on test data, for comparisons alone."""


class Exhaustive:
    """Merge, train every group, choose by validation losses. The merged phase probes as MAS's does, to be the same."""

    def __init__(
        self, tasks: Tasks, *, merged_rounds: int, split_rounds: int, probe_from: int, probe_rounds: int, groups: int
    ) -> None:
        if not 2 <= len(tasks) <= MOST_TASKS:
            raise SplitImpossible(f"every group of {len(tasks)} tasks cannot be trained: 2 to {MOST_TASKS} tasks can")
        if not 1 <= groups <= len(tasks):
            raise SplitImpossible(f"{len(tasks)} tasks cannot be split into exactly {groups} groups")
        self._tasks = tuple(sorted(tasks))
        self._merged_rounds = merged_rounds
        self._split_rounds = split_rounds
        self._probe_from = probe_from
        self._probe_rounds = probe_rounds
        self._groups = groups

    def next(self, done: Sequence[Phase], measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last. Raises SplitImpossible."""
        order = (self._merge, self._every, self._validate, self._survey, self._split, self._test)
        return order[len(done)](done, measured) if len(done) < len(order) else None

    def may_end(self, _phase: Phase, _measured: Measurements) -> bool:
        """Return False: no phase ends early."""
        return False

    def _merge(self, _done: Sequence[Phase], _measured: Measurements) -> Phase:
        return Phase(
            name="merge",
            work="train",
            groups=(self._tasks,),
            start=None,
            rounds=self._merged_rounds,
            probe_from=self._probe_from,
            probe_rounds=self._probe_rounds,
        )

    def _every(self, _done: Sequence[Phase], _measured: Measurements) -> Phase:
        sizes = range(1, len(self._tasks) + 1)
        groups = tuple(group for size in sizes for group in combinations(self._tasks, size))
        return Phase(name="groups", work="train", groups=groups, start="merge", rounds=self._split_rounds)

    def _validate(self, done: Sequence[Phase], _measured: Measurements) -> Phase:
        return _measure("measure", done[-1].groups, "val", start="groups")

    def _survey(self, done: Sequence[Phase], _measured: Measurements) -> Phase:
        return _measure(SURVEY, done[-1].groups, "test", start="groups")

    def _split(self, _done: Sequence[Phase], measured: Measurements) -> Phase:
        losses = {group: found for group, found in measured.losses["measure"].items() if len(found) == len(group)}
        known = known_divisions(losses, self._tasks, self._groups)
        if not known:
            raise SplitImpossible("no division into groups was measured: the devices have no validation data")
        best = min(known, key=known.__getitem__)
        found = TaskSplit(groups=best, score=-known[best] / len(self._tasks), mode="exactly")
        return Phase(name="split", work="train", groups=best, start="merge", rounds=self._split_rounds, split=found)

    def _test(self, done: Sequence[Phase], _measured: Measurements) -> Phase:
        return _measure("end", done[-1].groups, "test", start="split")


def _measure(name: str, groups: tuple[Tasks, ...], split: DataSplit, *, start: str) -> Phase:
    return Phase(name=name, work="evaluate", groups=groups, start=start, data_split=split)
