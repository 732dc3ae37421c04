"""Weights that a rule makes for each device at the close of a round, and what it remembers until the next one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from broker_server.aggregation.hca2 import Gates, HyperWeights
from broker_server.aggregation.relations import DeviceFold, Relation
from broker_server.rounds.journal import FederationJournal
from broker_server.strategies.planner import Round
from edge_runtime.wire.blob import Blob, BlobStore
from edge_runtime.wire.tensors import TensorTable, Vector, pack, unpack


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule remembers of a device: the push that it was given, laid out as its weights, and its gates."""

    push: Blob
    gates: Gates


@dataclass(frozen=True, kw_only=True)
class FoldedRound:
    """What a round's results make, as blobs that are here: nothing, for a round of evaluation."""

    weights: Blob | None = None
    state: Blob | None = None
    """The aggregation state, for the group's next round."""
    own: Mapping[str, Blob] = field(default_factory=dict)
    """Weights of single devices."""
    fact: tuple[str, str] | None = None
    """To be journalled with them."""


class RelatedWeights:
    """The weights of devices in one federation, by one rule. What is remembered is a fact of the journal."""

    def __init__(self, relation: Relation | HyperWeights, journal: FederationJournal, blobs: BlobStore) -> None:
        self._relation = relation
        self._journal = journal
        self._blobs = blobs

    def fold(self, table: TensorTable) -> DeviceFold:
        """Begin to fold a round's weights, laid out by the devices' table."""
        return DeviceFold(table, self._relation, self._blobs.root)

    def made(
        self, closed: Round, fold: DeviceFold, table: TensorTable, shared: Vector
    ) -> tuple[dict[str, Blob], tuple[str, str] | None]:
        """Return each device's new weights, as blobs that are here, and the fact to be journalled with them.

        `shared` (D,) are the weights made for all.
        """
        if not isinstance(self._relation, HyperWeights):
            return {device: self._blobs.add(pack(table, weights)) for device, weights in fold.result(shared)}, None
        known = self._remembered(_key(closed))
        before = {name: (unpack(table, self._blobs.read(each.push.digest)), each.gates) for name, each in known.items()}
        made, kept = {}, dict(known)
        for device, pushed in fold.pushed(before):
            made[device] = self._blobs.add(pack(table, pushed.weights))
            kept[device] = Remembered(push=self._blobs.add(pack(table, pushed.push)), gates=pushed.gates)
        return made, (_key(closed), msgspec.json.encode(kept).decode())

    def digests(self, rounds: Mapping[tuple[str, str], object]) -> set[str]:
        """Return the digests of what is remembered of some phases' groups."""
        keys = [f"relation/{phase}/{group}" for phase, group in rounds]
        return {each.push.digest for key in keys for each in self._remembered(key).values()}

    def _remembered(self, key: str) -> dict[str, Remembered]:
        return msgspec.json.decode(self._journal.fact(key) or "{}", type=dict[str, Remembered])


def _key(closed: Round) -> str:
    return f"relation/{closed.phase}/{closed.group}"
