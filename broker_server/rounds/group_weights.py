"""The weights of groups: what a phase starts from, what a round begins with, and the files that its plans name.

What the journal names is kept as long as it names it. What is made for plans alone (a part of the weights, a centre) is
kept as long as results of their rounds may come.
"""

import msgspec

from broker_server.aggregation.rules import ENCODER
from broker_server.rounds.exchange import Exchange
from broker_server.rounds.held import held_plans
from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.manifests import GroupManifests
from broker_server.strategies.planner import Phase, Round, source_group
from edge_runtime.wire.blob import Blob, BlobStore
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.names import group_id
from edge_runtime.wire.personal import Held, Personal
from edge_runtime.wire.tensors import TensorTable, Vector, pack, replaced, transfer, unpack


class GroupWeights:
    """The weights of a federation's groups, all derived from journal and blobs."""

    def __init__(
        self, *, journal: FederationJournal, blobs: BlobStore, manifests: GroupManifests, exchange: Exchange
    ) -> None:
        self._journal = journal
        self._blobs = blobs
        self._manifests = manifests
        self._exchange = exchange
        self._made: dict[str, int] = {}

    @property
    def made(self) -> set[str]:
        """The digests of what plans name and the journal does not."""
        return set(self._made)

    def forget(self, before_round: int) -> None:
        """Let go of what was made for the plans of earlier rounds."""
        self._made = {digest: number for digest, number in self._made.items() if number >= before_round}

    def starts(self, phase: Phase) -> dict[str, Blob]:
        """Return the weights that a phase's groups start from, by group, as blobs that are here."""
        source = next((earlier for earlier, _ in self._journal.phases() if earlier.name == phase.start), None)
        current = self._journal.weights()
        starts = {}
        for number, tasks in enumerate(phase.groups):
            table = self._manifests.of(tasks).table
            vector = self._manifests.initial_weights(table)
            if source is not None:
                origin = phase.sources[number] if phase.sources else source_group(tasks, source.groups)
                data = self._blobs.read(current[source.name, group_id(origin)].digest)
                vector = _grown(table, vector, self._manifests.of(origin).table, data)
            starts[group_id(tasks)] = self._blobs.add(pack(table, vector))
        return starts

    def of(self, planned: Round) -> Blob:
        """Return the weights that a round begins with: the newest of its group, or those of an earlier version."""
        newest = self._journal.weights()[planned.phase, planned.group]
        return self._journal.versions().get(planned.number, newest)

    def initial(self, planned: Round) -> Vector:
        """Return the complete weights of the group, encoder included, that a round begins with."""
        return unpack(self._manifests.of(planned.tasks).table, self._blobs.read(self.of(planned).digest))

    def for_devices(self, planned: Round) -> Blob:
        """Return the weights that devices receive, as a blob that is here."""
        manifest = self._manifests.of(planned.tasks)
        table = self._exchange.table(manifest)
        return self.of(planned) if table.size == manifest.table.size else self._part(planned, table)

    def by_device(self, planned: Round) -> dict[str, Blob]:
        """Return the weights of devices that have their own, by device, in order: those that the round before made."""
        phase = self._phase(planned)
        source = phase.start if planned.work == "evaluate" and phase.start is not None else phase.name
        return dict(sorted(self._journal.device_weights().get((source, planned.group), {}).items()))

    def device_plans(self, planned: Round, plan: Plan) -> dict[str, Plan]:
        """Return the plans of devices that have weights of their own, by device."""
        own = self.by_device(planned).items()
        plans = {device: msgspec.structs.replace(plan, weights=blob) for device, blob in own}
        prior = self._exchange.personal.prior
        if prior is None or planned.work == "evaluate":
            return plans
        plans = held_plans(plans, self._exchange.table(self._manifests.of(planned.tasks)), prior, self._blobs)
        self._keep(planned, *(blob for each in plans.values() for blob in each.files))
        return plans

    def personal(self, planned: Round) -> Personal | None:
        """Return what devices have of their own in a round."""
        manifest = self._manifests.of(planned.tasks)
        own = self._exchange.own_table(manifest)
        start = None if own is None else self._part(planned, own)
        return self._exchange.personal.of(manifest.table, start)

    def held(self, planned: Round) -> Held | None:
        """Return what holds the encoder to where the phase before left it."""
        phase = self._phase(planned)
        if not phase.hold or phase.start is None or phase.sources is None:
            return None
        origin = phase.sources[phase.groups.index(planned.tasks)]
        source = self._manifests.of(origin).table
        encoder = source.select([ENCODER])
        left = unpack(source, self._blobs.read(self._journal.weights()[phase.start, group_id(origin)].digest))
        centre = self._blobs.add(pack(encoder, transfer(source, left, encoder)))
        self._keep(planned, centre)
        return Held(parts=(ENCODER,), centre=centre, strength=2 * phase.hold)

    def _part(self, planned: Round, table: TensorTable) -> Blob:
        """Return some tensors of the weights that a round begins with, as a blob."""
        complete = self._manifests.of(planned.tasks).table
        blob = self._blobs.add(pack(table, transfer(complete, self.initial(planned), table)))
        self._keep(planned, blob)
        return blob

    def _keep(self, planned: Round, *blobs: Blob) -> None:
        self._made |= dict.fromkeys((blob.digest for blob in blobs), planned.number)

    def _phase(self, planned: Round) -> Phase:
        return next(phase for phase, _ in self._journal.phases() if phase.name == planned.phase)


def _grown(table: TensorTable, first: Vector, source: TensorTable, data: bytes) -> Vector:
    """Return a group's weights out of another's file; what that one lacks is as in the `first` weights (D,)."""
    known = {tensor.name for tensor in source.tensors}
    common = TensorTable.of({t.name: t.shape for t in table.tensors if t.name in known})
    return replaced(table, first, common, transfer(source, unpack(source, data), common))
