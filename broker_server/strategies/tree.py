"""Split when it is measured to pay: a tree of groups, halved where a round of the halves gains more for its cost.

All tasks begin in one group. After every few rounds each group is tried against its own halves, by affinities the best
ones: the group trains for a round, and so does each half, from the same weights. What each gains is the decrease of
the validation loss; what it costs is the joules of its rounds, or, where devices do not measure them, the stated cost
of training. The group goes on as what gained more for its cost, from the weights of the trial, so that only the
loser's round is lost. A group that has split may split again.

There is one schedule of the learning rate over all rounds, and each task is trained for as many as with any strategy.
"""

# coverage: every branch

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from broker_server.grouping.search import SplitImpossible, TaskSplit, search_table
from broker_server.grouping.training_cost import training_cost
from broker_server.grouping.weighted_affinity import weighted_scores
from broker_server.strategies.planner import Measurements, Phase
from edge_runtime.wire.messages import DataSplit
from edge_runtime.wire.names import Tasks

TRAIN, NOW, TRY, TRIED = "train-", "now-", "try-", "tried-"
"""The phases of a step: training, the loss at its end, the trials, and their losses; each with the step's number."""


Losses = Mapping[str, float]
GroupLosses = Mapping[Tasks, Losses]
Joules = Callable[[Tasks], float | None]


class Tree:
    """Train `rounds` rounds in all, at most `groups` groups, with a decision after every `decide_every`."""

    def __init__(self, tasks: Tasks, *, rounds: int, decide_every: int, groups: int, head_cost: float) -> None:
        if not 1 <= groups <= len(tasks):
            raise SplitImpossible(f"{len(tasks)} tasks cannot be split into up to {groups} groups")
        self._tasks = tuple(sorted(tasks))
        self._rounds = rounds
        self._decide_every = decide_every
        self._groups = groups
        self._head_cost = head_cost

    def next(self, done: Sequence[Phase], measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last. Raises SplitImpossible."""
        if not done:
            return self._train(0, (self._tasks,), None, 0)
        last = done[-1]
        kind, _, number = last.name.rpartition("-")
        match f"{kind}-":
            case "train-":
                return self._after_training(last, int(number))
            case "now-":
                return self._try(done[-2], last, int(number), measured)
            case "try-":
                return _measure(f"{TRIED}{number}", last.groups, last.name, "val")
            case "tried-":
                return self._decide(done[-4:], int(number), measured)
        return None

    def may_end(self, _phase: Phase, _measured: Measurements) -> bool:
        """Return False: no phase ends early."""
        return False

    def _train(
        self, number: int, groups: tuple[Tasks, ...], start: str | None, before: int, split: TaskSplit | None = None
    ) -> Phase:
        can_split = len(groups) < self._groups and before + self._decide_every + 1 <= self._rounds
        rounds = self._decide_every if can_split else self._rounds - before
        return Phase(
            name=f"{TRAIN}{number}",
            work="train",
            groups=groups,
            sources=None if start is None else groups,
            start=start,
            rounds=rounds,
            probe_rounds=rounds if can_split else 0,
            rounds_before=before,
            schedule_rounds=self._rounds,
            split=split,
        )

    def _after_training(self, last: Phase, number: int) -> Phase:
        if last.rounds_before + last.rounds == self._rounds:
            return _measure("end", last.groups, last.name, "test")
        return _measure(f"{NOW}{number}", last.groups, last.name, "val")

    def _try(self, trained: Phase, now: Phase, number: int, measured: Measurements) -> Phase:
        """Return a round of each group and of its halves."""
        losses = _complete(measured, now)
        groups: list[Tasks] = []
        for group in now.groups:
            groups += [group, *self._halves(group, losses[group], measured)]
        return Phase(
            name=f"{TRY}{number}",
            work="train",
            groups=tuple(groups),
            start=trained.name,
            rounds_before=trained.rounds_before + trained.rounds,
            schedule_rounds=self._rounds,
        )

    def _halves(self, group: Tasks, losses: Losses, measured: Measurements) -> tuple[Tasks, ...]:
        """Return the halves with the largest expected decrease of the loss; none of a single task."""
        if len(group) == 1:
            return ()
        places = [measured.affinities.tasks.index(task) for task in group]
        values = measured.affinities.values[places][:, places]
        return search_table(group, weighted_scores(group, values, losses), 2, "exactly").groups

    def _decide(self, step: Sequence[Phase], number: int, measured: Measurements) -> Phase:
        """Return the next training of each group, or of its halves where these gained more for their cost."""
        _, now, tried, after = step
        before, losses = _complete(measured, now), _complete(measured, after)
        joules = partial(measured.joules, tried.name)
        groups: list[Tasks] = []
        for place, group in enumerate(now.groups):
            halves = tuple(each for each in tried.groups if set(each) < set(group))
            room = self._groups - len(groups) - (len(now.groups) - place)
            pays = room > 0 and halves and self._pays(group, halves, before[group], losses, joules)
            groups += halves if pays else (group,)
        chosen, trained = tuple(groups), tried.rounds_before + tried.rounds
        found = None
        if len(chosen) > len(now.groups):
            gain = _total(now.groups, before) - _total(chosen, losses)
            found = TaskSplit(groups=chosen, score=gain, mode="at_most")
        if trained == self._rounds:
            return _measure("end", chosen, tried.name, "test", sources=chosen)
        return self._train(number + 1, chosen, tried.name, trained, found)

    def _pays(
        self, group: Tasks, halves: tuple[Tasks, ...], before: Losses, losses: GroupLosses, joules: Joules
    ) -> bool:
        """Return whether a round of the halves lowered the loss, and for its cost by more than one of the group."""
        ways = ((group,), halves)
        spent = [[joules(each) for each in way] for way in ways]
        costs = [sum(each or 0.0 for each in way) for way in spent]
        if not all(each for way in spent for each in way):
            heads = dict.fromkeys(group, self._head_cost)
            costs = [training_cost(way, encoder=1.0, heads=heads) for way in ways]
        whole, apart = (sum(before.values()) - _total(way, losses) for way in ways)
        return apart > 0 and apart / costs[1] > whole / costs[0]


def _complete(measured: Measurements, phase: Phase) -> GroupLosses:
    """Return the losses of a phase's groups. Raises SplitImpossible where a task's was not measured."""
    losses = measured.losses.get(phase.name, {})
    for group in phase.groups:
        if missing := sorted(set(group) - losses.get(group, {}).keys()):
            raise SplitImpossible(f"the loss of {missing[0]!r} was not measured: devices have no validation data of it")
    return losses


def _total(groups: Sequence[Tasks], losses: GroupLosses) -> float:
    return sum(sum(losses[group].values()) for group in groups)


def _measure(
    name: str, groups: tuple[Tasks, ...], start: str, split: DataSplit, sources: tuple[Tasks, ...] | None = None
) -> Phase:
    return Phase(name=name, work="evaluate", groups=groups, sources=sources, start=start, data_split=split)
