"""A federation's state: its phases, weights and manifests, and the weights that a closed round makes of them.

Everything here is derived from the journal and the blobs, so that a process that starts again stands where the last
one stopped. Weights are written before they are journalled; what they replace is deleted after. What devices have sent
is in folders of their own (device_uploads.py): what is kept and what is deleted follows from the journal alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.aggregation.rules import RoundAggregation
from broker_server.aggregation.staleness import Discount, rebased, shares, variance
from broker_server.aggregation.sums import LocalSums, Sums, SumsLost
from broker_server.grouping.affinity import Affinities, AffinityLedger
from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.exchange import Exchange
from broker_server.rounds.group_weights import GroupWeights
from broker_server.rounds.journal import FederationJournal, RoundFacts, RoundRow
from broker_server.rounds.linear_rounds import LinearRounds
from broker_server.rounds.losses import weighted_losses
from broker_server.rounds.manifests import GroupManifests
from broker_server.rounds.measured import measured, measured_in
from broker_server.rounds.related import FoldedRound, RelatedWeights
from broker_server.rounds.round_state import Result, RoundTraffic, lighter
from broker_server.rounds.terms import Terms
from broker_server.rounds.trained import TrainedWeights, UpdatesLost
from broker_server.strategies.planner import (
    Measurements,
    Phase,
    Round,
    learning_rate,
)
from edge_runtime.wire.blob import Blob, BlobStore, describe
from edge_runtime.wire.encoder_pipe import EncoderRound
from edge_runtime.wire.errors import BlobInvalid, TensorsInvalid
from edge_runtime.wire.manifest import (
    Manifest,
    encode,
)
from edge_runtime.wire.messages import Evaluation, Plan, Training, Update, text
from edge_runtime.wire.names import Tasks, group_id
from edge_runtime.wire.signing import sign
from edge_runtime.wire.tensors import Vector, pack, transfer, unpack


class FederationChanged(ValueError):
    """The state folder holds a federation with another bundle or other settings."""


class StateDamaged(RuntimeError):
    """Weights that the journal names are not in the state folder, and cannot be made again."""


class Federation:
    """A federation over one bundle. `folder` is the bundle's, already checked against `bundle`.

    `make_sums` makes the sum, of so many elements, that a round's updates are folded into. Raises FederationChanged if
    the journal was begun with another bundle or other `terms.settings`, StateDamaged.
    """

    def __init__(
        self,
        *,
        journal: FederationJournal,
        blobs: BlobStore,
        uploads: DeviceUploads,
        bundle: Manifest,
        folder: Path,
        key: Ed25519PrivateKey,
        terms: Terms,
        make_sums: Callable[[int], Sums] = LocalSums,
    ) -> None:
        self._journal = journal
        self._make_sums = make_sums
        self._blobs = blobs
        self._uploads = uploads
        self._key = key
        self._strategy = terms.strategy
        self._training = terms.training
        self._updates = terms.updates
        self._aggregation = terms.aggregation
        self._max_age = terms.max_age
        self._discount: Discount = terms.discount
        self._shared_encoder = terms.shared_encoder
        self._exchange = Exchange(personal=terms.personal, is_apart=terms.shared_encoder is not None)
        self._linear = None if terms.linear is None else LinearRounds(terms.linear, journal, blobs)
        relation = terms.personal.relation
        self._related = None if relation is None else RelatedWeights(relation, journal, blobs)
        self.tasks: Tasks = tuple(sorted(terms.tasks))
        self._claim("bundle", describe(encode(bundle)).digest)
        self._claim("settings", terms.settings)
        journal.set_fact("versions", msgspec.json.encode(bundle.versions).decode())
        journal.set_fact("metrics", msgspec.json.encode({task.name: task.metric for task in bundle.tasks}).decode())
        self.manifests = GroupManifests(bundle, folder, self.tasks, journal=journal, blobs=blobs)
        self._weights = GroupWeights(journal=journal, blobs=blobs, manifests=self.manifests, exchange=self._exchange)
        self._trained = TrainedWeights(
            manifests=self.manifests,
            blobs=blobs,
            uploads=uploads,
            exchange=self._exchange,
            shared_encoder=terms.shared_encoder,
        )
        self._make_again()
        self._ledger = AffinityLedger(self.tasks)
        for found in measured(journal):
            self._ledger.add(*found)

    def _claim(self, fact: str, value: str) -> None:
        before = self._journal.fact(fact)
        if before is None:
            self._journal.set_fact(fact, value)
        elif before != value:
            raise FederationChanged(
                f"the state folder holds a federation with another {fact}: "
                "give the same again, name another state folder, or start over with --new"
            )

    @property
    def is_linear(self) -> bool:
        """Return whether the model is linear."""
        return self._linear is not None

    @property
    def affinities(self) -> Affinities:
        """The affinities measured in the rounds that are closed."""
        return self._ledger.result()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that have begun."""
        return tuple(phase for phase, _ in self._journal.phases())

    def next(self) -> Round | None:
        """Return the round that is open, or the one that comes next; None if the federation is finished.

        Begins a new phase where the last is done. Raises SplitImpossible.
        """
        phases = self._journal.phases()
        closed = [row for row in self._journal.rounds() if row.closed_s is not None]
        measured = self._measured(closed)
        if phases:
            phase, first = phases[-1]
            step = sum(row.round.number >= first for row in closed)
            if step < phase.steps and not (step and self._strategy.may_end(phase, measured)):
                return phase.round_at(step, first)
        following = self._strategy.next([phase for phase, _ in phases], measured)
        if following is None:
            return None
        first = len(closed)
        self._journal.begin_phase(following, first, self._weights.starts(following))
        return following.round_at(0, first)

    def plan(self, planned: Round, deadline_s: float) -> Plan:
        """Return the plan of the round that is open or comes next, as it is sent at the round's begin."""
        manifest = encode(self.manifests.of(planned.tasks))
        return Plan(
            work=planned.work,
            round=planned.number,
            phase=planned.phase,
            group=planned.group,
            tasks=planned.tasks,
            bundle=self._blobs.add(manifest),
            signature=sign(self._key, manifest),
            weights=self._weights.for_devices(planned),
            training=self._training_of(planned) if planned.work == "train" else None,
            updates=self._updates,
            split_learning=None if self._shared_encoder is None else self._shared_encoder.settings,
            personal=self._weights.personal(planned),
            linear=None if self._linear is None else self._linear.work(planned),
            held=self._weights.held(planned),
            data_split=planned.data_split,
            deadline_s=deadline_s,
        )

    def device_plans(self, planned: Round, plan: Plan) -> dict[str, Plan]:
        """Return the plans of devices that have weights of their own, by device: those that the round before made."""
        if self._linear is not None:
            size = self.manifests.of(planned.tasks).table.size
            return self._linear.plans(planned, plan, size, self._weights.by_device(planned))
        return self._weights.device_plans(planned, plan)

    def _measured(self, closed: Sequence[RoundRow]) -> Measurements:
        """Return the measurements of the closed rounds."""
        losses: dict[str, dict[Tasks, dict[str, float]]] = {}
        for row in closed:
            if row.round.work == "evaluate":
                results = self._journal.results(row.round.number).values()
                found = [(each.loss, each.examples) for each in results if isinstance(each, Evaluation)]
                losses.setdefault(row.round.phase, {})[row.round.tasks] = weighted_losses(found)
        return Measurements(
            affinities=self.affinities,
            losses=losses,
            ledger=self._ledger,
            joules=self._joules,
            rounds=Counter(row.round.phase for row in closed if row.round.work == "train"),
        )

    def _joules(self, phase: str, tasks: Tasks) -> float | None:
        """Return what a group's rounds in a phase have taken; None where a member has not reported it."""
        total = 0.0
        for row in self._journal.rounds():
            if (row.round.phase, row.round.tasks) == (phase, tasks):
                spent = self._journal.energy(row.round.number)
                known = [each.energy_j for device in row.members if (each := spent.get(device)) is not None]
                if len(known) < len(row.members) or None in known:
                    return None
                total += sum(each for each in known if each is not None)
        return total

    def groups_without_artifacts(self, planned: Round) -> tuple[Tasks, ...]:
        """Return the groups of a training round's phase that have no ONNX Runtime training artifacts."""
        groups = self.phases[-1].groups if planned.work == "train" else ()
        return tuple(tasks for tasks in groups if self.manifests.of(tasks).ort_training is None)

    def encoder_round(self, plan: Plan) -> EncoderRound:
        """Return what the encoder server needs of a round of split learning."""
        assert self._shared_encoder is not None
        weights = self._journal.weights()[plan.phase, plan.group]
        return self._shared_encoder.encoder_round(plan.round, plan.training, self._blobs.path(weights.digest))

    def plans_sent(self, planned: Round, members: Iterable[str], deadline_s: float) -> dict[str, Plan]:
        """Return what members of an open round were sent last, where it is not all of the round's own plan."""
        oldest = planned.number - self._max_age
        asked = {device: found for device, found in self._journal.asked().items() if device in set(members)}
        rows = {number: self._journal.row(number) for number in {number for number, _ in asked.values()}}
        plans = {
            number: self.plan(row.round, deadline_s)
            for number, row in rows.items()
            if row is not None and number >= oldest and row.round.group == planned.group
        }
        return {device: lighter(plans[number], share) for device, (number, share) in asked.items() if number in plans}

    def check_update(self, plan: Plan, device: str, update: Update) -> None:
        """Raise TensorsInvalid unless the fetched update can count; BlobInvalid where it is not here."""
        self._trained.check(plan, device, update)

    def close(self, closed: Round, devices: Iterable[str], traffic: RoundTraffic) -> dict[str, Result]:
        """Fold the results of `devices`, journal what the round made, and delete what it no longer needs.

        Devices are folded in the order of their names, so the result does not depend on who was first. Raises
        UpdatesLost, and changes nothing, where updates can no longer be read.
        """
        journalled = self._journal.results(closed.number)
        results = {device: journalled[device] for device in sorted(devices)}
        folded = self._fold(closed, results) if closed.work == "train" else FoldedRound()
        reported = sum(result.bytes_down for result in results.values())
        self._journal.close_round(
            closed,
            folded.weights,
            bytes_up=traffic.up_bytes,
            bytes_down=None if traffic.down_bytes is None else traffic.down_bytes + reported,
            aggregation_state=folded.state,
            max_age=self._max_age if closed.work == "train" else 0,
            device_weights=folded.own,
            fact=folded.fact,
        )
        self._add_affinities(results)
        if closed.work == "train":
            oldest = closed.number - self._max_age
            self._weights.forget(oldest)
            self.sweep(partial=not self._max_age)  # others are at work for the rounds to come
            if self._shared_encoder is not None:
                self._shared_encoder.delete_before(closed.number)
        return results

    def sweep(self, *, partial: bool) -> None:
        """Delete the blobs that the journal does not need, with `partial` also uploads still on their way."""
        kept = {blob.digest for blob in self._journal.weights().values()} | self.manifests.digests
        kept |= {blob.digest for blob in self._journal.aggregation_states().values()} | self._weights.made
        kept |= {blob.digest for blob in self._journal.versions().values()}
        device_weights = self._journal.device_weights()
        kept |= {blob.digest for own in device_weights.values() for blob in own.values()}
        kept |= set() if self._related is None else self._related.digests(device_weights)
        for phase in self.phases:
            kept |= {describe(encode(self.manifests.of(tasks))).digest for tasks in phase.groups}
        for digest in list(self._blobs.digests()):
            if digest not in kept:
                self._blobs.discard(digest)
        counted: dict[str, set[str]] = {}
        for row in self._journal.rounds():
            if row.closed_s is None:
                for device, digest in self._update_digests(row.round.number).items():
                    counted.setdefault(device, set()).add(digest)
        self._uploads.keep(counted, partial=partial)

    def drop_lost(self, round_number: int) -> list[str]:
        """Take the results out of the journal whose weights are no longer here, and return their devices, in order."""
        digests = self._update_digests(round_number).items()
        lost = [device for device, digest in digests if not self._uploads.has(device, digest)]
        for device in lost:
            self._journal.remove_result(round_number, device)
        return lost

    def _update_digests(self, round_number: int) -> dict[str, str]:
        """Return the digests of a round's updates, by device."""
        results = self._journal.results(round_number).items()
        return {device: result.weights.digest for device, result in results if isinstance(result, Update)}

    def _make_again(self) -> None:
        """Make blobs again that the journal names and that are gone, where a phase still stands at its start.

        Raises StateDamaged for what the devices have trained.
        """
        for phase in self.phases:
            gone = {group_id(tasks) for tasks in phase.groups if not self._is_here(phase.name, group_id(tasks))}
            if gone:
                with suppress(BlobInvalid, TensorsInvalid):
                    self._weights.starts(phase)
        journal = self._journal
        named = [*journal.weights().items(), *journal.aggregation_states().items()]
        rows = {row.round.number: row.round for row in journal.rounds()}
        named += [((rows[number].phase, rows[number].group), blob) for number, blob in journal.versions().items()]
        if lost := [(key, blob) for key, blob in named if blob.digest not in self._blobs]:
            (phase_name, group), blob = lost[0]
            raise StateDamaged(
                f"the weights of {group} in phase {phase_name} ({blob.digest[:12]}) are not in {self._blobs.root}: "
                "restore the state folder from a backup, or begin again with --new"
            )

    def _is_here(self, phase: str, group: str) -> bool:
        blob = self._journal.weights().get((phase, group))
        return blob is None or blob.digest in self._blobs

    def _fold(self, closed: Round, results: Mapping[str, Result]) -> FoldedRound:
        """Return what a round's results make. What is not folded elsewhere is folded here, to the same bits."""
        try:
            return self._folded(closed, results, self._make_sums)
        except SumsLost as exc:
            self._journal.note(f"round {closed.number} is folded here, for the Ray cluster did not do it: {text(exc)}")
            return self._folded(closed, results, LocalSums)

    def _folded(self, closed: Round, results: Mapping[str, Result], make_sums: Callable[[int], Sums]) -> FoldedRound:
        manifest = self.manifests.of(closed.tasks)
        table, device_table = manifest.table, self._exchange.table(manifest)
        initial = self._weights.initial(closed)
        if self._linear is not None:
            own = self._weights.by_device(closed)
            made = self._linear.fold(closed, results, table, self._uploads, shared=initial, own=own)
            return FoldedRound(weights=made.shared, state=made.state, own=made.own)
        layout = self._aggregation.state_table(table)
        before = self._journal.aggregation_states().get((closed.phase, closed.group))
        aggregation = RoundAggregation(
            table,
            initial,
            self._aggregation,
            state=None if layout is None or before is None else unpack(layout, self._blobs.read(before.digest)),
            seed=(self._training.seed, closed.index),
            folder=self._blobs.root,
            sums=make_sums(table.size),
        )
        apart = None if self._related is None else self._related.fold(device_table)
        updates = {device: result for device, result in results.items() if isinstance(result, Update)}
        variances = []
        if self._discount == "ftte":
            variances = [variance(table, base, trained) for _, base, trained in self._read(closed, updates, initial)]
        ages = [closed.number - update.round for update in updates.values()]
        counting = zip(self._read(closed, updates, initial), shares(self._discount, ages, variances), strict=True)
        for (device, base, trained), share in counting:
            update = updates[device]
            is_newest = update.round == closed.number and share == 1.0
            aggregation.fold(
                trained if is_newest else rebased(table, trained, base=base, newest=initial, share=share),
                update.examples,
            )
            if apart is not None:
                apart.fold(device, transfer(table, base, device_table), transfer(table, trained, device_table))
        new, state = aggregation.result()
        if aggregation.diverged:
            self._journal.note(f"round {closed.number}: the step of the encoder was not finite, and was not taken")
        left = None if layout is None or state is None else self._blobs.add(pack(layout, state))
        folded = FoldedRound(weights=self._blobs.add(pack(table, new)), state=left)
        if self._related is None or apart is None:
            return folded
        own, fact = self._related.made(closed, apart, device_table, transfer(table, new, device_table))
        return replace(folded, own=own, fact=fact)

    def _read(
        self, closed: Round, updates: Mapping[str, Update], newest: Vector
    ) -> Iterator[tuple[str, Vector, Vector]]:
        """Yield each device of an update, the weights that it began from, and those that it ended with, complete.

        It may have begun from the `newest`. Raises UpdatesLost after the last, where some can no longer be read.
        """
        lost = {}
        versions, own = self._journal.versions(), self._weights.by_device(closed)
        manifest = self.manifests.of(closed.tasks)
        for device, update in updates.items():
            base = newest
            if update.round != closed.number:
                base = unpack(manifest.table, self._blobs.read(versions[update.round].digest))
            elif device in own:
                sent = unpack(self._exchange.table(manifest), self._blobs.read(own[device].digest))
                base = self._exchange.complete(manifest, newest, sent)
            try:
                trained = self._trained.read(closed.tasks, device, update, base)
            except (BlobInvalid, TensorsInvalid) as exc:
                lost[device] = str(exc)
                self._uploads.of(device).discard(update.weights.digest)
            else:
                yield device, base, trained
        if lost:
            raise UpdatesLost(lost)

    def add_rounds(
        self, facts: Sequence[RoundFacts], weights: Blob | None, device_weights: Mapping[str, Blob] | None = None
    ) -> None:
        """Journal closed rounds of one group, and the weights that they made, as if they had been played here."""
        self._journal.add_rounds(facts, weights, device_weights)
        for each in facts:
            self._add_affinities(each.results)

    def _add_affinities(self, results: Mapping[str, Result]) -> None:
        for found in measured_in(self._journal, results):
            self._ledger.add(*found)

    def _training_of(self, planned: Round) -> Training:
        settings = self._training
        return msgspec.structs.replace(
            settings,
            first_epoch=planned.index * settings.epochs,
            lr=learning_rate(settings.lr, planned.index, self.phases[-1]),
            probe_every=settings.probe_every if planned.probe else 0,
        )
