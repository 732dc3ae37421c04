"""Rounds of linear models: what devices are asked for, and what their answers make, by a rule (aggregation/linear.py).

The rule's state is the group's aggregation state. Its rows are the devices that have answered in the phase so far, in
the order of their names: the journal has who that is, and in which round each answered last.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from broker_server.aggregation.linear import Answer, Array, LinearRule, RoundPlace, State
from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.round_state import Result
from broker_server.rounds.trained import UpdatesLost
from broker_server.strategies.planner import Round
from edge_runtime.wire.blob import Blob, BlobStore
from edge_runtime.wire.errors import BlobInvalid, TensorsInvalid
from edge_runtime.wire.linear import LinearWork, answer_table
from edge_runtime.wire.messages import Plan, Update
from edge_runtime.wire.tensors import TensorTable, Vector, pack, unpack


class LinearOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a round has measured of the problem, with the weights that devices were sent; None where not all did."""

    objective: float | None
    gap: float | None
    """The duality gap, a certificate: the objective is at most so far above the least that is possible."""


@dataclass(frozen=True, kw_only=True)
class LinearFold:
    """A round's weights: of the group, and of each device that has its own; and the rule's state, as blobs."""

    shared: Blob
    state: Blob | None
    own: dict[str, Blob]


def outcome(journal: FederationJournal, round_number: int) -> LinearOutcome | None:
    """Return what a closed round has measured; None for a round without a linear model."""
    fact = journal.fact(_fact(round_number))
    return None if fact is None else msgspec.json.decode(fact, type=LinearOutcome)


class LinearRounds:
    """The rounds of a federation by one rule."""

    def __init__(self, rule: LinearRule, journal: FederationJournal, blobs: BlobStore) -> None:
        self._rule = rule
        self._journal = journal
        self._blobs = blobs

    def work(self, planned: Round) -> LinearWork:
        """Return what a device is asked for that has not answered in the phase before."""
        return self._rule.work({}, "", None, None, _place(planned))

    def plans(self, planned: Round, plan: Plan, size: int, own: Mapping[str, Blob]) -> dict[str, Plan]:
        """Return the plans of devices that have answered before, with weights (size,) of their `own`."""
        if planned.work == "evaluate":
            return {name: msgspec.structs.replace(plan, weights=blob) for name, blob in own.items()}
        since = self._since(planned)
        state, place = self._state(planned, list(since), size), _place(planned)
        return {
            name: msgspec.structs.replace(
                plan, weights=own[name], linear=self._rule.work(state, name, row, since[name], place)
            )
            for row, name in enumerate(since)
            if name in own
        }

    def fold(
        self,
        closed: Round,
        results: Mapping[str, Result],
        table: TensorTable,
        uploads: DeviceUploads,
        *,
        shared: Vector,
        own: Mapping[str, Blob],
    ) -> LinearFold:
        """Return what devices' answers make, and journal what they measured.

        Devices were sent their `own` weights, or the group's, `shared` (d,), laid out by `table`. Raises UpdatesLost.
        """
        answers = self._answers(closed, results, table, uploads, shared=shared, own=own)
        known = list(self._since(closed))
        devices = sorted({*known, *answers})
        state = self._rule.extended(self._state(closed, known, table.size), known, devices, table.size)
        folded = self._rule.fold(state, devices, answers, _place(closed))
        made = LinearOutcome(objective=folded.objective, gap=folded.gap)
        self._journal.set_fact(_fact(closed.number), msgspec.json.encode(made).decode())
        if folded.shared is not None:
            return LinearFold(shared=self._weights(table, folded.shared), state=None, own={})
        layout = self._layout(len(devices), table.size)
        stored = np.concatenate([folded.state[t.name].ravel() for t in layout.tensors]).astype(np.float32)
        rows = self._rule.weights(_read(layout, stored))
        assert rows is not None
        return LinearFold(
            shared=self._weights(table, rows.mean(0)),
            state=self._blobs.add(pack(layout, stored)),
            own={name: self._weights(table, row) for name, row in zip(devices, rows, strict=True)},
        )

    def _answers(
        self,
        closed: Round,
        results: Mapping[str, Result],
        table: TensorTable,
        uploads: DeviceUploads,
        *,
        shared: Vector,
        own: Mapping[str, Blob],
    ) -> dict[str, Answer]:
        layout = answer_table(table, self.work(closed))
        answers, lost = {}, {}
        for device, result in results.items():
            if isinstance(result, Update) and result.linear is not None:
                store = uploads.of(device)
                try:
                    vector = unpack(layout, store.read(result.weights.digest))
                except (BlobInvalid, TensorsInvalid) as exc:
                    lost[device] = str(exc)
                    store.discard(result.weights.digest)
                    continue
                sent = unpack(table, self._blobs.read(own[device].digest)) if device in own else shared
                ((task, examples),) = result.examples.items()
                answers[device] = Answer(
                    vector=vector.astype(np.float64),
                    sent=sent.astype(np.float64),
                    loss=result.train_loss[task],
                    examples=examples,
                    facts=result.linear,
                    age=closed.number - result.round,
                )
        if lost:
            raise UpdatesLost(lost)
        return answers

    def _weights(self, table: TensorTable, weights: Array) -> Blob:
        return self._blobs.add(pack(table, weights.astype(np.float32)))

    def _since(self, planned: Round) -> dict[str, int]:
        """Return the round in which each device answered last, in order, for those that did in the phase before."""
        first = next(first for phase, first in self._journal.phases() if phase.name == planned.phase)
        return self._journal.last_results(first, planned.number)

    def _state(self, planned: Round, known: list[str], size: int) -> State:
        blob = self._journal.aggregation_states().get((planned.phase, planned.group))
        if blob is None:
            return {}
        layout = self._layout(len(known), size)
        return _read(layout, unpack(layout, self._blobs.read(blob.digest)))

    def _layout(self, devices: int, size: int) -> TensorTable:
        return TensorTable.of(self._rule.shapes(devices, size))


def _read(layout: TensorTable, stored: Vector) -> State:
    return {name: view.astype(np.float64) for name, view in layout.views(stored).items()}


def _place(planned: Round) -> RoundPlace:
    return RoundPlace(index=planned.index, rounds=planned.rounds)


def _fact(round_number: int) -> str:
    return f"linear/{round_number}"
