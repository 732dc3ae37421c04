"""Merge, measure, split: MAS.

Measure the untrained model, train all tasks merged and probe affinities, measure, split by affinity, train each group
from the merged weights, measure. With one group there is nothing to split: it ends with the merged model. Each of its
parts can be replaced, so that the two compare: `choice` finds the groups, perhaps by trials before the split, `start`
names the weights that they go on from, `confidence` ends the merged phase early.

Source: MAS (Zhuang, Wen, Lyu, Zhang, ICCV 2023), section 3 and its released code.
"""

# coverage: every branch

from collections.abc import Sequence
from typing import Literal

from broker_server.grouping.confidence import settled_split
from broker_server.grouping.search import Mode, SplitImpossible
from broker_server.strategies.choice import Choice
from broker_server.strategies.planner import TRIED, WEIGHED, Measurements, Phase
from edge_runtime.wire.messages import DataSplit
from edge_runtime.wire.names import Tasks

Start = Literal["merged", "scratch"]
Schedule = Literal["restart", "continue"]


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
        choice: Choice,
        trial_rounds: int = 1,
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
        self._choice = choice
        self._trial_rounds = trial_rounds
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
            case [*_, "merged" | "weighed" | "trials" | "tried" as last] if self._groups > 1:
                return self._towards_split(last, done[-1], measured)
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

    def _towards_split(self, last: str, phase: Phase, measured: Measurements) -> Phase:
        """Return what comes next on the way from the merged model to the split."""
        if last == "trials":
            return self._test(TRIED, phase.groups, "trials", "val")
        if last == "merged" and self._choice.needs_losses:
            return self._test(WEIGHED, (self._tasks,), "merge", "val")
        if last != TRIED and (trials := self._choice.trials(measured)):
            return self._trials(trials, measured)
        return self._split(measured)

    def _split(self, measured: Measurements) -> Phase:
        found = self._choice.choose(measured)
        is_scratch = self._start == "scratch"
        before, whole = self._schedule_left(measured)
        return Phase(
            name="split",
            work="train",
            groups=found.groups,
            start=None if is_scratch else "merge",
            rounds=self._all_rounds if is_scratch else whole - before,
            rounds_before=0 if is_scratch else before,
            split=found,
        )

    def _trials(self, groups: tuple[Tasks, ...], measured: Measurements) -> Phase:
        """Return trials at the learning rate of the middle of the split: at its first, losses differ more by chance."""
        before, whole = self._schedule_left(measured)
        middle = max(before, min((before + whole) // 2, whole - self._trial_rounds))
        return Phase(
            name="trials",
            work="train",
            groups=groups,
            start="merge",
            rounds=self._trial_rounds,
            rounds_before=middle,
            schedule_rounds=max(whole, middle + self._trial_rounds),
        )

    def _schedule_left(self, measured: Measurements) -> tuple[int, int]:
        """Return where the schedule of the learning rate stands after the merged phase, and its length."""
        merged = measured.rounds.get("merge", self._merged_rounds)
        return (merged, self._all_rounds) if self._schedule == "continue" else (0, self._all_rounds - merged)

    @staticmethod
    def _test(name: str, groups: tuple[Tasks, ...], start: str | None, split: DataSplit = "test") -> Phase:
        return Phase(name=name, work="evaluate", groups=groups, start=start, data_split=split)
