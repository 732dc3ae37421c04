"""Groups that are known before any training, each from the bundle's weights, one after another.

With every task in a group of its own this is one-by-one, with all tasks in one group all-in-one.
"""

# coverage: every branch

from collections.abc import Sequence

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.planner import Measurements, Phase, final, serving
from edge_runtime.wire.names import Tasks


class FixedGroups:
    """Trains given groups from scratch, `rounds` each, then measures the group that serves each task.

    A task in several groups is served by the first of them.
    """

    def __init__(self, tasks: Tasks, groups: Sequence[Tasks], *, rounds: int) -> None:
        self._groups = tuple(tuple(sorted(group)) for group in groups)
        if odd := sorted({task for group in self._groups for task in group} - set(tasks)):
            raise SplitImpossible(f"the groups have a task {odd[0]!r} that the federation does not train")
        if missing := sorted(set(tasks) - {task for group in self._groups for task in group}):
            raise SplitImpossible(f"task {missing[0]!r} is in none of the groups")
        self._rounds = rounds

    def next(self, done: Sequence[Phase], _measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last."""
        match [phase.name for phase in done]:
            case []:
                return Phase(
                    name="train",
                    work="train",
                    groups=self._groups,
                    start=None,
                    rounds=self._rounds,
                )
            case ["train"]:
                return final(serving(self._groups, lambda *_: 0.0), "train")
        return None

    def may_end(self, _phase: Phase, _measured: Measurements) -> bool:
        """Return False: no phase ends early."""
        return False
