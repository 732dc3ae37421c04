"""Strategies: pure planners that look at what has happened and return the next phase.

A phase is some rounds of one kind of work on one or more groups of tasks, one group after another. Everything else
(who takes part, what is sent, aggregation, state) is the same machinery for every strategy. The strategies themselves
are in `broker_server.strategies`.

Source of the learning rate's schedule: MAS (Zhuang, Wen, Lyu, Zhang, ICCV 2023), its released code.
"""

# coverage: every branch

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from broker_server.grouping.affinity import Affinities, AffinityLedger
from broker_server.grouping.search import TaskSplit
from edge_runtime.wire.messages import DataSplit, RoundNumber
from edge_runtime.wire.names import GroupId, Tasks, group_id

DECAY_POWER = 0.9
"""Of the learning-rate schedule, as in the released code of MAS."""

WEIGHED = "weighed"
"""The phase that measures the merged model on validation data."""
TRIED = "tried"
"""The phase that measures groups after short trials, beside one another."""

PhaseName = Annotated[str, Meta(min_length=1, max_length=32)]


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of work on groups of tasks, one group after another."""

    name: PhaseName
    work: Literal["train", "evaluate"]
    groups: Annotated[tuple[Tasks, ...], Meta(min_length=1)]
    start: PhaseName | None
    """The training phase whose weights the groups start from, or are measured with; null for the bundle's."""
    sources: tuple[Tasks, ...] | None = None
    """For each group, the group of `start` whose weights it takes; null for the smallest that holds all its tasks.

    What that group lacks begins with the bundle's weights.
    """
    hold: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """The encoder is held to where `start` left it: hold · ‖θ − θ'‖² is added to devices' losses."""
    rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Rounds for each group."""
    probe_from: int = 0
    probe_rounds: int = 0
    """Affinities are probed in this many rounds of each group, from its round `probe_from` on."""
    rounds_before: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The learning rate's schedule goes on as if each group had trained for this many rounds before; 0 restarts it."""
    schedule_rounds: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """The rounds that the schedule is over; null for those before and those of the phase."""
    open_ended: bool = False
    """True if the strategy may end the phase before its last round."""
    data_split: DataSplit | None = None
    split: TaskSplit | None = None
    """The search's result, where the groups were searched."""

    @property
    def steps(self) -> int:
        """Rounds in all."""
        return self.rounds * len(self.groups)

    def round_at(self, step: int, first_round: int) -> "Round":
        """Return round number `step`, from 0, of the phase, whose first round has the ordinal `first_round`."""
        tasks = self.groups[step // self.rounds]
        index = step % self.rounds
        return Round(
            number=first_round + step,
            phase=self.name,
            work=self.work,
            group=group_id(tasks),
            tasks=tasks,
            index=index,
            rounds=self.rounds,
            probe=0 <= index - self.probe_from < self.probe_rounds,
            data_split=self.data_split,
        )


class Round(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round of a phase, as it is journalled: what it is about, before any device is asked."""

    number: RoundNumber = msgspec.field(name="round")
    """Counts up through the federation."""
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


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The measurements of a federation so far, for a strategy to decide by."""

    affinities: Affinities
    """Over all rounds that probed."""
    losses: Mapping[str, Mapping[Tasks, Mapping[str, float]]] = field(default_factory=dict)
    """Of each evaluation that is done, by its phase, group and task: means over examples of all devices."""
    ledger: AffinityLedger | None = None
    """The affinities of each device in each round."""
    joules: Callable[[str, Tasks], float | None] = lambda _phase, _group: None
    """The energy of all rounds of a group in a phase; None where not every member has reported it."""
    rounds: Mapping[str, int] = field(default_factory=dict)
    """Rounds that each phase of training has had."""


class Strategy(Protocol):
    """A seam: strategies differ in nothing but the phase that comes next."""

    def next(self, done: Sequence[Phase], measured: Measurements, /) -> Phase | None:
        """Return the phase after those that are done; None when the federation is finished. Raises SplitImpossible."""
        ...

    def may_end(self, phase: Phase, measured: Measurements, /) -> bool:
        """Return whether a phase that is going on may end before its last round. Asked after each of its rounds."""
        ...


def source_group(group: Tasks, groups: Sequence[Tasks]) -> Tasks:
    """Return the group of an earlier phase that `group` takes its weights from: the smallest that holds all its tasks.

    Raises ValueError if there is none.
    """
    holding = [other for other in groups if set(group) <= set(other)]
    if not holding:
        raise ValueError(f"no earlier group holds all of {', '.join(group)}")
    return min(holding, key=len)


def learning_rate(lr: float, index: int, phase: Phase) -> float:
    """Return lr·(1 - r/R)^0.9 for round r of the R of the phase's schedule, where `index` is the round in the phase."""
    rounds = phase.schedule_rounds or phase.rounds_before + phase.rounds
    return float(lr * (1.0 - (phase.rounds_before + index) / rounds) ** DECAY_POWER)


def final(served: Sequence[tuple[Tasks, Tasks]], start: PhaseName) -> Phase:
    """Return the last phase, which measures on test data the groups of the phase `start` that serve the tasks."""
    return Phase(
        name="end",
        work="evaluate",
        groups=tuple(block for block, _ in served),
        sources=tuple(group for _, group in served),
        start=start,
        data_split="test",
    )


def serving(groups: Sequence[Tasks], better: Callable[[Tasks, str], float]) -> tuple[tuple[Tasks, Tasks], ...]:
    """Return for each of some groups, which may overlap, the tasks that it serves, disjoint: (tasks, group).

    A task is served by the group with the largest `better(group, task)`, of equal ones the first. A group that serves
    nothing is left out.
    """
    best: dict[str, Tasks] = {}
    for task in sorted({task for group in groups for task in group}):
        holding = [group for group in groups if task in group]
        best[task] = holding[max(range(len(holding)), key=[better(group, task) for group in holding].__getitem__)]
    blocks = ((tuple(task for task in group if best[task] == group), group) for group in dict.fromkeys(groups))
    return tuple((block, group) for block, group in blocks if block)
