"""Strategies: pure planners that look at what has happened and return the next phase.

A phase is some rounds of one kind of work on one or more groups of tasks, one group after another. Everything else
(who takes part, what is sent, aggregation, state) is the same machinery for every strategy. MAS is: measure the
untrained model, train all tasks merged and probe affinities, measure, split by affinity, train each group from the
merged weights, measure. With one group there is nothing to split: it ends with the merged model.

Source: MAS (Zhuang, Wen, Lyu, Zhang, ICCV 2023), section 3 and its released code.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from broker_server.affinity import Affinities
from broker_server.split import Mode, Split, SplitImpossible, search
from edge_runtime.wire.messages import DataSplit, Round
from edge_runtime.wire.names import GroupId, Tasks, group_id

DECAY_POWER = 0.9
"""Of the learning-rate schedule, as in the released code of MAS."""

PhaseName = Annotated[str, Meta(min_length=1, max_length=32)]


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of work on groups of tasks, one group after another."""

    name: PhaseName
    work: Literal["train", "evaluate"]
    groups: Annotated[tuple[Tasks, ...], Meta(min_length=1)]
    start: PhaseName | None
    """The training phase whose weights the groups start from, or are measured with; null for the bundle's."""
    rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Rounds for each group."""
    probe_from: int = 0
    probe_rounds: int = 0
    """Affinities are probed in so many rounds of each group, from round `probe_from` of its own on."""
    data_split: DataSplit | None = None
    split: Split | None = None
    """How the groups were found, where they were searched."""

    @property
    def steps(self) -> int:
        """Rounds in all."""
        return self.rounds * len(self.groups)


class Assignment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round: what it is about, before anybody was asked."""

    round: Round
    """Counts up through the whole federation."""
    phase: PhaseName
    work: Literal["train", "evaluate"]
    group: GroupId
    tasks: Tasks
    index: int
    """The round within its group and phase, from 0."""
    rounds: int
    """Rounds of the group in the phase."""
    probe: bool
    data_split: DataSplit | None


class Strategy(Protocol):
    """A seam, because strategies differ in nothing but this: what comes next."""

    def next(self, done: Sequence[Phase], affinities: Affinities) -> Phase | None:
        """The phase after those that are done; None when the federation is finished. Raises SplitImpossible."""
        ...


class Mas:
    """Merge, measure, split."""

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
    ) -> None:
        if mode == "exactly" and groups > len(tasks):
            raise SplitImpossible(f"{len(tasks)} tasks cannot be split into exactly {groups} groups")
        self._tasks = tuple(sorted(tasks))
        self._merged_rounds = merged_rounds
        self._split_rounds = split_rounds
        self._probe_from = probe_from
        self._probe_rounds = probe_rounds
        self._groups = groups
        self._mode: Mode = mode

    def next(self, done: Sequence[Phase], affinities: Affinities) -> Phase | None:
        """The phase after those that are done; None after the last. Raises SplitImpossible."""
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
                )
            case [*_, "merge"]:
                return self._test("merged", (self._tasks,), "merge")
            case [*_, "merged"] if self._groups > 1:
                found = self._search(affinities)
                return Phase(
                    name="split",
                    work="train",
                    groups=found.groups,
                    start="merge",
                    rounds=self._split_rounds,
                    split=found,
                )
            case [*_, "split"]:
                return self._test("end", done[-1].groups, "split")
        return None

    def _search(self, affinities: Affinities) -> Split:
        if not affinities.complete:
            raise SplitImpossible(
                "no device measured the affinities of all pairs of tasks, so there is nothing to split by: "
                "look at the devices' logs, or probe more rounds or batches"
            )
        return search(affinities.tasks, affinities.values, self._groups, self._mode)

    @staticmethod
    def _test(name: str, groups: tuple[Tasks, ...], start: str | None) -> Phase:
        return Phase(name=name, work="evaluate", groups=groups, start=start, data_split="test")


def assignment(phase: Phase, step: int, first_round: int) -> Assignment:
    """Round number `step`, from 0, of a phase whose first round has ordinal `first_round`."""
    tasks = phase.groups[step // phase.rounds]
    index = step % phase.rounds
    return Assignment(
        round=first_round + step,
        phase=phase.name,
        work=phase.work,
        group=group_id(tasks),
        tasks=tasks,
        index=index,
        rounds=phase.rounds,
        probe=0 <= index - phase.probe_from < phase.probe_rounds,
        data_split=phase.data_split,
    )


def source_group(group: Tasks, groups: Sequence[Tasks]) -> Tasks:
    """The group of an earlier phase that `group` takes its weights from: the smallest that holds all its tasks.

    Raises ValueError if there is none.
    """
    holding = [other for other in groups if set(group) <= set(other)]
    if not holding:
        raise ValueError(f"no earlier group holds all of {', '.join(group)}")
    return min(holding, key=len)


def learning_rate(lr: float, index: int, rounds: int) -> float:
    """lr·(1 - r/R)^0.9 for round r of R; the schedule restarts with every phase."""
    return float(lr * (1.0 - index / rounds) ** DECAY_POWER)
