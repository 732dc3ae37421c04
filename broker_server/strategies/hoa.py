"""HOA: train every task and every pair, predict what larger groups would lose, train the best ones from scratch.

Source: Standley et al., "Which Tasks Should Be Learned Together in Multi-task Learning?", ICML 2020, section 5.2
(higher-order approximation).
"""

# coverage: every branch

from collections.abc import Sequence
from itertools import combinations

from broker_server.grouping.pairs import loss_scores
from broker_server.grouping.search import SplitImpossible, Values, group_mask, search_table
from broker_server.strategies.choice import singles_and_pairs
from broker_server.strategies.planner import Measurements, Phase, final, serving
from edge_runtime.wire.names import Tasks


class Hoa:
    """Train all singles and all pairs for `rounds`, measure them on the devices' validation data, choose, train, test.

    The chosen groups are trained for `rounds` each from the bundle's weights, singles and pairs among them again.
    """

    def __init__(self, tasks: Tasks, *, rounds: int, groups: int) -> None:
        if not 2 <= groups <= len(tasks):
            raise SplitImpossible(f"HOA divides {len(tasks)} tasks into 2 to {len(tasks)} groups, not {groups}")
        self._tasks = tuple(sorted(tasks))
        self._rounds = rounds
        self._groups = groups

    def next(self, done: Sequence[Phase], measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last. Raises SplitImpossible."""
        match [phase.name for phase in done]:
            case []:
                alone = tuple((task,) for task in self._tasks)
                pairs = tuple(combinations(self._tasks, 2))
                return Phase(name="pairs", work="train", groups=alone + pairs, start=None, rounds=self._rounds)
            case ["pairs"]:
                return Phase(name="measure", work="evaluate", groups=done[0].groups, start="pairs", data_split="val")
            case ["pairs", "measure"]:
                scores = self._scores(measured)
                found = search_table(self._tasks, scores, self._groups, "overlap").among(scores)
                return Phase(
                    name="groups", work="train", groups=found.groups, start=None, rounds=self._rounds, split=found
                )
            case ["pairs", "measure", "groups"]:
                scores = self._scores(measured)
                served = serving(
                    done[-1].groups,
                    lambda group, task: float(scores[group_mask(self._tasks, group), self._tasks.index(task)]),
                )
                return final(served, "groups")
        return None

    def may_end(self, _phase: Phase, _measured: Measurements) -> bool:
        """Return False: no phase ends early."""
        return False

    def _scores(self, measured: Measurements) -> Values:
        """Return the scores (2^T, T) from the measured losses. Raises SplitImpossible where some were not measured."""
        found = measured.losses.get("measure", {})
        complete = {group: losses for group, losses in found.items() if losses.keys() == set(group)}
        return loss_scores(self._tasks, *singles_and_pairs(complete))
