"""The weights that devices have trained, read out of their updates."""

from collections.abc import Mapping
from dataclasses import dataclass

from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.encoder_process import EncoderRounds
from broker_server.rounds.exchange import Exchange
from broker_server.rounds.manifests import GroupManifests
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.compression import decode
from edge_runtime.wire.linear import answer_table
from edge_runtime.wire.messages import Plan, Update
from edge_runtime.wire.names import Tasks
from edge_runtime.wire.tensors import TensorTable, Vector, transfer, unpack


class UpdatesLost(RuntimeError):
    """Updates that count can no longer be read; `devices` has the reasons, by device."""

    def __init__(self, devices: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{device}: {why}" for device, why in devices.items()))
        self.devices = dict(devices)


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """Reads updates that are here, complete. In split learning the encoder comes from `shared_encoder`."""

    manifests: GroupManifests
    blobs: BlobStore
    uploads: DeviceUploads
    exchange: Exchange
    shared_encoder: EncoderRounds | None

    def table(self, tasks: Tasks) -> TensorTable:
        """Return the table of the weights that devices receive and send."""
        return self.exchange.table(self.manifests.of(tasks))

    def check(self, plan: Plan, device: str, update: Update) -> None:
        """Raise TensorsInvalid unless a fetched update is of the group's tensors and gives finite weights.

        BlobInvalid where it is not here. In split learning the encoder that the device has trained on the server must
        be there as well.
        """
        table = self.table(plan.tasks)
        if plan.linear is not None:
            table = answer_table(table, plan.linear)
        data = self.uploads.of(device).read(update.weights.digest)
        if update.scheme == "fp32":  # in full: the weights that the device received need not be in memory as well
            unpack(table, data)
        else:
            decode(table, data, update.scheme, unpack(table, self.blobs.read(plan.weights.digest)))
        if self.shared_encoder is not None:
            self.shared_encoder.read(update.round, device, self.manifests.bundle.encoder_table)

    def read(self, tasks: Tasks, device: str, update: Update, base: Vector) -> Vector:
        """Return the group's complete weights as a device has trained them from `base`.

        Raises BlobInvalid, TensorsInvalid.
        """
        manifest, table = self.manifests.of(tasks), self.table(tasks)
        received = base if table.size == manifest.table.size else transfer(manifest.table, base, table)
        sent = decode(table, self.uploads.of(device).read(update.weights.digest), update.scheme, received)
        encoder = None
        if self.shared_encoder is not None:
            encoder = self.shared_encoder.read(update.round, device, self.manifests.bundle.encoder_table)
        return self.exchange.complete(manifest, base, sent, encoder)
