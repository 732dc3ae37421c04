"""TAG: affinities over a complete all-in-one run, then groups that may overlap, each from scratch.

Source: Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021.
"""

# coverage: every branch

from collections.abc import Sequence

from broker_server.grouping.search import SplitImpossible, search, task_score
from broker_server.strategies.choice import find_split
from broker_server.strategies.planner import Measurements, Phase, final, serving
from edge_runtime.wire.names import Tasks


class Tag:
    """Train all tasks merged for `rounds` and probe all the time, then train at most `groups` groups for `rounds` each.

    A task counts in the group that scores best for it; that group serves it in the end.
    """

    def __init__(self, tasks: Tasks, *, rounds: int, groups: int, probe_from: int = 0, probe_rounds: int) -> None:
        if groups < 2:
            raise SplitImpossible("TAG divides tasks into groups: it needs two at least")
        self._tasks = tuple(sorted(tasks))
        self._rounds = rounds
        self._groups = groups
        self._probe_from = probe_from
        self._probe_rounds = probe_rounds

    def next(self, done: Sequence[Phase], measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last. Raises SplitImpossible."""
        match [phase.name for phase in done]:
            case []:
                return Phase(
                    name="merge",
                    work="train",
                    groups=(self._tasks,),
                    start=None,
                    rounds=self._rounds,
                    probe_from=self._probe_from,
                    probe_rounds=self._probe_rounds,
                )
            case ["merge"]:
                found = find_split(
                    measured.affinities,
                    lambda affinities: search(affinities.tasks, affinities.values, self._groups, "overlap"),
                )
                return Phase(
                    name="groups", work="train", groups=found.groups, start=None, rounds=self._rounds, split=found
                )
            case ["merge", "groups"]:
                tasks, values = measured.affinities.tasks, measured.affinities.values
                served = serving(done[-1].groups, lambda group, task: task_score(tasks, values, group, task))
                return final(served, "groups")
        return None

    def may_end(self, _phase: Phase, _measured: Measurements) -> bool:
        """Return False: no phase ends early."""
        return False
