"""Group runs that were computed before are not computed again, because they would be the same bit for bit.

A group run is all rounds of one group in one phase. Its key is a digest of everything that its outcome depends on: the
group's manifest and first weights, the training settings, the rounds and their probes, the rules, the boards and their
data. Strategies that are compared share many group runs (every pair of tasks, the merged model). Each strategy is
charged for all of its own: rounds, results, seconds and joules are journalled as if they had been computed again.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker_server.aggregation.rules import Aggregation
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal, RoundFacts, RoundRow
from broker_server.simulation.timeline import Timeline
from broker_server.strategies.planner import Phase, Round
from edge_runtime.wire.blob import Blob, BlobStore
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.messages import Plan, Training
from edge_runtime.wire.names import group_id


class GroupRun(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one group in one phase. Times count from its beginning."""

    rounds: tuple[RoundFacts, ...]
    cpu_s: tuple[dict[str, float], ...]
    """CPU seconds of a worker process for each round, by device, where they were measured."""
    weights: Blob | None
    """What they made of the group; null for an evaluation."""
    device_weights: dict[str, Blob] = {}
    """What they made for single devices."""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All weights that they made."""
        shared = () if self.weights is None else (self.weights,)
        return (*shared, *self.device_weights.values())


class RunCache:
    """The known group runs, in a folder that simulations share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.blobs = BlobStore(folder / "weights")

    def find(self, key: str) -> GroupRun | None:
        """Return a group run; None if it is not known."""
        try:
            group_run = msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=GroupRun)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return group_run if all(blob.digest in self.blobs for blob in group_run.blobs) else None

    def keep(self, key: str, group_run: GroupRun) -> None:
        """Keep a group run for later simulations."""
        write_atomic(self._folder / f"{key}.json", msgspec.json.encode(group_run))


class _Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that the outcome of a group run depends on."""

    context: str
    manifest: str
    weights: str
    training: Training | None
    updates: object
    phase: tuple[object, ...]
    schedule_rounds: int | None = None
    personal: object = None
    held: object = None
    device_weights: dict[str, str] = {}
    aggregation: object = None
    apart: object = None


class GroupRuns:
    """The group runs of one federation, taken from a cache where it knows them.

    `context` is what all of them depend on beyond their plans and the aggregation.
    """

    def __init__(
        self,
        federation: Federation,
        journal: FederationJournal,
        blobs: BlobStore,
        *,
        aggregation: Aggregation,
        cache: RunCache,
        timeline: Timeline,
        context: str,
    ) -> None:
        self._federation = federation
        self._journal = journal
        self._blobs = blobs
        self._aggregation = aggregation
        self._cache = cache
        self._timeline = timeline
        self._context = context

    def next(self) -> Round | None:
        """Return the open round, or the next one that the cache does not know. Raises SplitImpossible."""
        while (planned := self._federation.next()) is not None:
            phase = self._federation.phases[-1]
            # What linear models have measured is of no use to other methods.
            if (
                self._federation.is_linear
                or planned.index
                or phase.open_ended
                or self._journal.row(planned.number) is not None
            ):
                return planned
            key = self._key(planned, phase)
            group_run = self._cache.find(key)
            if group_run is None:
                self._journal.set_fact(_fact(phase.name, planned.group), key)
                return planned
            self._take(planned, group_run)
        return None

    def computed(self, device: str, plan: Plan, cpu_s: float) -> None:
        """Journal the CPU seconds of a worker process that a device's work took."""
        known = msgspec.json.decode(self._journal.fact(_computed(plan.round)) or "{}", type=dict[str, float])
        set_computed(self._journal, plan.round, known | {device: cpu_s})

    def keep(self) -> None:
        """Give the cache the group runs of the federation, which has finished."""
        rows = [row for row in self._journal.rounds() if row.closed_s is not None]
        current = self._journal.weights()
        for phase in self._federation.phases:
            for tasks in phase.groups:
                group = group_id(tasks)
                key = self._journal.fact(_fact(phase.name, group))
                mine = [row for row in rows if (row.round.phase, row.round.group) == (phase.name, group)]
                if key is None or len(mine) != phase.rounds:
                    continue
                weights = current[phase.name, group] if phase.work == "train" else None
                own = self._journal.device_weights().get((phase.name, group), {})
                facts = tuple(
                    _moved(self._journal.facts_of(row), -mine[0].started_s, -mine[0].round.number) for row in mine
                )
                cpu_s = tuple(computed_s(self._journal, row) for row in mine)
                group_run = GroupRun(rounds=facts, cpu_s=cpu_s, weights=weights, device_weights=own)
                for blob in group_run.blobs:
                    self._cache.blobs.add(self._blobs.read(blob.digest))
                self._cache.keep(key, group_run)

    def _take(self, planned: Round, group_run: GroupRun) -> None:
        begun_s = self._timeline.now_s
        facts = [_moved(each, begun_s, planned.number, planned.phase) for each in group_run.rounds]
        self._timeline.pass_by(max((each.row.closed_s or begun_s) for each in facts) - begun_s)
        for blob in group_run.blobs:
            self._blobs.add(self._cache.blobs.read(blob.digest))
        for each, seconds in zip(facts, group_run.cpu_s, strict=True):
            set_computed(self._journal, each.row.round.number, seconds)
        self._federation.add_rounds(facts, group_run.weights, group_run.device_weights)

    def _key(self, planned: Round, phase: Phase) -> str:
        plan = self._federation.plan(planned, 1.0)
        own = self._federation.device_plans(planned, plan)
        shape = (
            phase.work,
            phase.rounds,
            phase.rounds_before,
            phase.probe_from,
            phase.probe_rounds,
            planned.data_split,
        )
        key = _Key(
            context=self._context,
            manifest=plan.bundle.digest,
            weights=self._journal.weights()[planned.phase, planned.group].digest,
            training=plan.training,
            updates=plan.updates,
            phase=shape,
            schedule_rounds=phase.schedule_rounds,
            personal=plan.personal,
            held=plan.held,
            device_weights={name: each.weights.digest for name, each in own.items()},
            aggregation=None if self._aggregation.is_plain or plan.training is None else self._aggregation,
            apart=plan.split_learning,
        )
        return hashlib.sha256(msgspec.json.encode(key)).hexdigest()


def computed_s(journal: FederationJournal, row: RoundRow) -> dict[str, float]:
    """Return the CPU seconds of a round by device, where they were measured."""
    return msgspec.json.decode(journal.fact(_computed(row.round.number)) or "{}", type=dict[str, float])


def set_computed(journal: FederationJournal, number: int, seconds: Mapping[str, float]) -> None:
    """Journal the CPU seconds of a round by device."""
    journal.set_fact(_computed(number), msgspec.json.encode(seconds).decode())


def _computed(number: int) -> str:
    return f"computed/{number}"


def _fact(phase: str, group: str) -> str:
    return f"course/{phase}/{group}"


def _moved(facts: RoundFacts, seconds: float, rounds: int, phase: str | None = None) -> RoundFacts:
    """Return a round at another time, under another number and perhaps in another phase."""
    row = facts.row
    number = row.round.number + rounds
    moved = msgspec.structs.replace(row.round, number=number, phase=phase or row.round.phase)
    return RoundFacts(
        row=msgspec.structs.replace(
            row,
            round=moved,
            started_s=row.started_s + seconds,
            closed_s=None if row.closed_s is None else row.closed_s + seconds,
        ),
        results={
            device: msgspec.structs.replace(result, round=result.round + rounds)
            for device, result in facts.results.items()
        },
        energy=facts.energy,
    )
