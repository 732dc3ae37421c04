"""Where a federation stands: its phases, weights and manifests, and what a closed round makes of them.

Everything here is derived from the journal and the blobs, so that a process that starts again stands where the last
one stopped. Weights are written before they are journalled; what they replace is deleted after.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.aggregation.encoder import ENCODER, Aggregation, Combination
from broker_server.aggregation.fedavg import weighted_losses
from broker_server.grouping.affinity import Affinities, AffinityLedger
from broker_server.rounds.actions import Result, Work
from broker_server.rounds.encoder_process import Apart
from broker_server.rounds.journal import FederationJournal, RoundRow
from broker_server.rounds.ort_training_process import BuiltArtifacts
from broker_server.strategies.planner import (
    Assignment,
    Measurements,
    Phase,
    Strategy,
    assignment,
    learning_rate,
    source_group,
)
from edge_runtime.wire.blob import Blob, BlobStore, describe
from edge_runtime.wire.compression import Updates, decode
from edge_runtime.wire.encoder_pipe import EncoderRound
from edge_runtime.wire.manifest import (
    TRAINING,
    WEIGHTS,
    Artifacts,
    File,
    Manifest,
    OrtTrainingArtifacts,
    artifact_path,
    encode,
    graph_path,
)
from edge_runtime.wire.messages import Evaluation, Training, Update
from edge_runtime.wire.names import Tasks, group_id
from edge_runtime.wire.signing import sign
from edge_runtime.wire.tensors import TensorTable, Vector, pack, transfer, unpack


class FederationChanged(ValueError):
    """The state folder holds a federation with another bundle or other settings."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a federation is begun with."""

    tasks: Tasks
    strategy: Strategy
    training: Training
    """How devices train in a first round that probes."""
    updates: Updates
    aggregation: Aggregation
    settings: str
    """What must not change once it has begun, as JSON."""
    apart: Apart | None = None
    """How the encoder is computed by a host; devices are then given the rest of the weights alone."""
    own_stems: bool = False
    """Whether each device trains a stem of its own, which it never sends."""


class Federation:
    """A federation over one bundle. `folder` is the bundle's, already checked against `bundle`.

    Raises FederationChanged if the journal was begun with another bundle or other `terms.settings`.
    """

    def __init__(
        self,
        *,
        journal: FederationJournal,
        blobs: BlobStore,
        bundle: Manifest,
        folder: Path,
        key: Ed25519PrivateKey,
        terms: Terms,
    ) -> None:
        self._journal = journal
        self._blobs = blobs
        self._bundle = bundle
        self._key = key
        self._strategy = terms.strategy
        self._training = terms.training
        self._updates = terms.updates
        self._aggregation = terms.aggregation
        self._apart = terms.apart
        self._own_stems = terms.own_stems
        self._lent: Blob | None = None
        self.tasks: Tasks = tuple(sorted(terms.tasks))
        self._claim("bundle", describe(encode(bundle)).digest)
        self._claim("settings", terms.settings)
        journal.set_fact("versions", msgspec.json.encode(bundle.versions).decode())
        journal.set_fact("metrics", msgspec.json.encode({task.name: task.metric for task in bundle.tasks}).decode())
        self._initial = unpack(bundle.table, (folder / WEIGHTS).read_bytes())
        self._manifests: dict[Tasks, Manifest] = {}
        self._artifacts = self._whole(journal.official())
        self._ledger = AffinityLedger(self.tasks)
        for row in journal.rounds():
            if row.closed_s is not None and row.assignment.probe:
                self._learn(row.assignment.round, journal.results(row.assignment.round))
        self._graphs = tuple(
            blobs.add(graph_path(folder, name).read_bytes()) for name in bundle.group(self.tasks, bundle.weights).graphs
        )
        if bundle.ort_training is not None:
            self._graphs += tuple(
                blobs.add(artifact_path(folder, group, TRAINING).read_bytes()) for group in bundle.ort_training.groups
            )

    def _claim(self, fact: str, value: str) -> None:
        before = self._journal.fact(fact)
        if before is None:
            self._journal.set_fact(fact, value)
        elif before != value:
            raise FederationChanged(
                f"the state folder holds a federation with another {fact}: "
                "give the same again, name another state folder, or begin anew with --new"
            )

    @property
    def bundle(self) -> Manifest:
        """The bundle's manifest."""
        return self._bundle

    @property
    def graphs(self) -> tuple[Blob, ...]:
        """The graph files and official training models, to be offered to devices."""
        made = (artifacts.training_model for artifacts in self._artifacts.values())
        return self._graphs + tuple(Blob(digest=file.digest, size_bytes=file.size_bytes) for file in made)

    @property
    def affinities(self) -> Affinities:
        """What has been measured in the rounds that are closed."""
        return self._ledger.result()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that have begun."""
        return tuple(phase for phase, _ in self._journal.phases())

    def next(self) -> Work | None:
        """The round that is open, or the one that comes next; None if the federation is finished.

        Begins a new phase where the last is done. Raises SplitImpossible.
        """
        phases = self._journal.phases()
        closed = [row for row in self._journal.rounds() if row.closed_s is not None]
        measured = self._measured(closed)
        if phases:
            phase, first = phases[-1]
            step = sum(row.assignment.round >= first for row in closed)
            if step < phase.steps and not (step and self._strategy.enough(phase, measured)):
                return self._work(phase, assignment(phase, step, first))
        following = self._strategy.next([phase for phase, _ in phases], measured)
        if following is None:
            return None
        first = len(closed)
        self._journal.begin_phase(following, first, self._starts(following))
        return self._work(following, assignment(following, 0, first))

    def _measured(self, closed: Sequence[RoundRow]) -> Measurements:
        """What the closed rounds have measured."""
        losses: dict[str, dict[Tasks, dict[str, float]]] = {}
        for row in closed:
            about = row.assignment
            if about.work == "evaluate":
                results = self._journal.results(about.round).values()
                found = [(each.loss, each.examples) for each in results if isinstance(each, Evaluation)]
                losses.setdefault(about.phase, {})[about.tasks] = weighted_losses(found)
        return Measurements(
            affinities=self.affinities,
            losses=losses,
            ledger=self._ledger,
            rounds=Counter(row.assignment.phase for row in closed if row.assignment.work == "train"),
        )

    def lacking(self, work: Work) -> tuple[Tasks, ...]:
        """The groups of the phase of a round of training that have no official artifacts."""
        groups = self.phases[-1].groups if work.assignment.work == "train" else ()
        return tuple(tasks for tasks in groups if self._manifest(tasks).ort_training is None)

    def adopt(self, made: Mapping[Tasks, BuiltArtifacts]) -> None:
        """Take official artifacts into the manifests of their groups from now on, and journal them."""
        for each in made.values():
            for path in each.files.values():
                self._blobs.add(path.read_bytes())
        self._journal.set_official({group_id(tasks): each.artifacts for tasks, each in made.items()})
        self._artifacts = self._whole(self._journal.official())
        for tasks in made:
            self._manifests.pop(tasks, None)

    def miss(self, groups: Iterable[Tasks], problem: str) -> None:
        """Journal why groups have no official artifacts."""
        self._journal.set_official({group_id(tasks): problem for tasks in groups})

    def begun(self, work: Work) -> RoundRow | None:
        """The journal's row of a round, if an earlier process has begun it."""
        for row in self._journal.rounds():
            if row.assignment.round == work.assignment.round:
                return row
        return None

    def open(self, work: Work) -> EncoderRound:
        """What the host of the general model is told of a round."""
        assert self._apart is not None
        return self._apart.open(work.assignment.round, work.training, self._blobs.path(work.whole.digest))

    def check_update(self, work: Work, device: str, update: Update) -> None:
        """Raises TensorsInvalid unless the fetched update is of the group's tensors and gives finite weights.

        Of an encoder that was computed by the host, what the device has taught it must be there.
        """
        table = self._table(work)
        if update.scheme == "fp32":  # in full: what the device was given need not be in memory as well
            unpack(table, self._blobs.read(update.weights.digest))
        else:
            decode(table, self._blobs.read(update.weights.digest), update.scheme, self._given(work.weights, table))
        if self._apart is not None:
            self._apart.read(update.round, device, self._bundle.general)

    def close(
        self, work: Work, devices: Iterable[str], *, bytes_up: int | None, exchanged_down: int | None = 0
    ) -> dict[str, Result]:
        """Fold the results of `devices`, journal what the round made, and delete what it no longer needs.

        `exchanged_down` bytes have gone to devices beyond what these say that they have downloaded;
        None was not counted.

        Devices are folded in the order of their names, so the result does not depend on who was first.
        """
        about = work.assignment
        journalled = self._journal.results(about.round)
        results = {device: journalled[device] for device in sorted(devices)}
        weights, memory = self._fold(work, results) if about.work == "train" else (None, None)
        bytes_down = sum(result.bytes_down for result in results.values())
        whole_down = None if exchanged_down is None else exchanged_down + bytes_down
        self._journal.close_round(about, weights, bytes_up=bytes_up, bytes_down=whole_down, memory=memory)
        if about.probe:
            self._learn(about.round, results)
        if about.work == "train":
            self.sweep(partial=True)
            if self._apart is not None:
                self._apart.sweep(about.round)
        return results

    def sweep(self, *, partial: bool) -> None:
        """Delete the blobs that the journal does not need, with `partial` also those still on their way."""
        kept = {blob.digest for blob in self._journal.weights().values()} | {blob.digest for blob in self.graphs}
        kept |= {blob.digest for blob in self._journal.memories().values()}
        if self._lent is not None:
            kept.add(self._lent.digest)
        kept |= {file.digest for artifacts in self._artifacts.values() for file in artifacts.files.values()}
        for phase in self.phases:
            kept |= {describe(encode(self._manifest(tasks))).digest for tasks in phase.groups}
        for row in self._journal.rounds():
            if row.closed_s is None:
                results = self._journal.results(row.assignment.round).values()
                kept |= {result.weights.digest for result in results if isinstance(result, Update)}
        for digest in list(self._blobs.digests()):
            if digest not in kept and (partial or digest in self._blobs):
                self._blobs.discard(digest)

    def _fold(self, work: Work, results: Mapping[str, Result]) -> tuple[Blob, Blob | None]:
        """The round's weights, and what it leaves for the group's next one, as blobs that are here."""
        about = work.assignment
        table = self._manifest(about.tasks).table
        given = self._given(work.whole, table)
        layout = self._aggregation.memory(table)
        before = self._journal.memories().get((about.phase, about.group))
        combination = Combination(
            table,
            given,
            self._aggregation,
            memory=None if layout is None or before is None else unpack(layout, self._blobs.read(before.digest)),
            seed=(self._training.seed, about.index),
            folder=self._blobs.root,
        )
        for device, result in results.items():
            if isinstance(result, Update):
                combination.fold(self._trained(work, device, result, given), result.examples)
        new, memory = combination.result()
        if combination.diverged:
            self._journal.note(f"round {about.round}: the step of the encoder was not finite, and was not taken")
        left = None if layout is None or memory is None else self._blobs.add(pack(layout, memory))
        return self._blobs.add(pack(table, new)), left

    def _table(self, work: Work) -> TensorTable:
        """The table of what devices are given and send."""
        manifest = self._manifest(work.assignment.tasks)
        return (manifest if work.apart is None else manifest.local()).table

    def _given(self, weights: Blob, table: TensorTable) -> Vector:
        """Weights that a round began with."""
        return unpack(table, self._blobs.read(weights.digest))

    def _trained(self, work: Work, device: str, update: Update, given: Vector) -> Vector:
        """The group's weights as a device has trained them, in full. Raises TensorsInvalid."""
        whole, table = self._manifest(work.assignment.tasks).table, self._table(work)
        start = given if work.apart is None else transfer(whole, given, table)
        sent = decode(table, self._blobs.read(update.weights.digest), update.scheme, start)
        if self._apart is None:
            return sent
        taught = self._apart.read(update.round, device, self._bundle.general)
        trained = np.array(given)
        for part, where in whole.parts.items():
            trained[where] = taught if part == ENCODER else sent[table.parts[part]]
        return trained

    def _learn(self, round_number: int, results: Mapping[str, Result]) -> None:
        for device, result in results.items():
            if isinstance(result, Update) and result.affinity is not None:
                self._ledger.add(round_number, device, result.affinity)

    def _starts(self, phase: Phase) -> dict[str, Blob]:
        """The weights that a phase's groups start from, by group, as blobs that are here."""
        source = next((earlier for earlier in self.phases if earlier.name == phase.start), None)
        current = self._journal.weights()
        starts = {}
        for number, tasks in enumerate(phase.groups):
            table = self._manifest(tasks).table
            if source is None:
                vector = transfer(self._bundle.table, self._initial, table)
            else:
                origin = phase.sources[number] if phase.sources else source_group(tasks, source.groups)
                digest = current[source.name, group_id(origin)].digest
                vector = transfer_file(self._blobs.read(digest), self._manifest(origin), self._manifest(tasks))
            starts[group_id(tasks)] = self._blobs.add(pack(table, vector))
        return starts

    def _work(self, phase: Phase, about: Assignment) -> Work:
        manifest = encode(self._manifest(about.tasks))
        whole = self._journal.weights()[phase.name, about.group]
        return Work(
            assignment=about,
            bundle=self._blobs.add(manifest),
            signature=sign(self._key, manifest),
            weights=whole if self._apart is None else self._lend(self._manifest(about.tasks), whole),
            whole=whole,
            apart=None if self._apart is None else self._apart.settings,
            own_stem=self._own_stems,
            training=self._train(phase, about) if about.work == "train" else None,
            updates=self._updates,
        )

    def _lend(self, manifest: Manifest, whole: Blob) -> Blob:
        """The weights without the encoder. They are kept until others are lent."""
        table = manifest.local().table
        self._lent = self._blobs.add(pack(table, transfer(manifest.table, self._given(whole, manifest.table), table)))
        return self._lent

    def _train(self, phase: Phase, about: Assignment) -> Training:
        settings = self._training
        return msgspec.structs.replace(
            settings,
            first_epoch=about.index * settings.epochs,
            lr=learning_rate(settings.lr, about.index, phase),
            probe_every=settings.probe_every if about.probe else 0,
        )

    def _whole(self, journalled: Mapping[str, Artifacts | str]) -> dict[str, Artifacts]:
        """The artifacts that were made in this federation and are here with all their files, by group."""
        made = {group: each for group, each in journalled.items() if isinstance(each, Artifacts)}
        return {
            group: each for group, each in made.items() if all(f.digest in self._blobs for f in each.files.values())
        }

    def _manifest(self, tasks: Tasks) -> Manifest:
        """A group's manifest. It names the bundle's initial weights, so that it is the same in every phase and round.

        It is another one when official artifacts have been made for the group: between two rounds.
        """
        if tasks in self._manifests:
            return self._manifests[tasks]
        table = self._bundle.group(tasks, self._bundle.weights).table
        initial = describe(pack(table, transfer(self._bundle.table, self._initial, table)))
        file = File(digest=initial.digest, size_bytes=initial.size_bytes)
        manifest = self._bundle.group(tasks, file)
        if made := self._artifacts.get(group_id(tasks)):
            manifest = msgspec.structs.replace(
                manifest, ort_training=OrtTrainingArtifacts(groups={group_id(tasks): made})
            )
        return self._manifests.setdefault(tasks, manifest)


def transfer_file(data: bytes, source: Manifest, target: Manifest) -> Vector:
    """One group's weights out of another's file."""
    return transfer(source.table, unpack(source.table, data), target.table)
