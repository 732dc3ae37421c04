"""What crosses of a group's weights between server and devices, and what is put together here.

The server's weights are complete. Devices receive and send them without the encoder where the server trains it (split
learning), and without the parts that are each device's own: of these the server has the first values alone.
"""

from dataclasses import dataclass

from broker_server.aggregation.personal import PersonalTerms
from broker_server.aggregation.rules import ENCODER
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.tensors import STATE, TensorTable, Vector, replaced


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A federation's rule of what crosses: `is_apart` where the server trains the encoder."""

    personal: PersonalTerms
    is_apart: bool = False

    def table(self, manifest: Manifest) -> TensorTable:
        """Return the table of the weights that devices receive and send."""
        complete, own = manifest.table, self._own(manifest)
        missing = {*own, *([ENCODER] if self.is_apart else ())}
        return complete.select(part for part in complete.parts if part not in missing) if missing else complete

    def own_table(self, manifest: Manifest) -> TensorTable | None:
        """Return the table of what is never sent; None where that is nothing."""
        own = self._own(manifest)
        return manifest.table.select(own) if own else None

    def complete(self, manifest: Manifest, initial: Vector, sent: Vector, encoder: Vector | None = None) -> Vector:
        """Return complete weights (D,): as a device has sent them, and the encoder that it has trained on the server.

        What is its own is as in the `initial` weights.
        """
        complete, table = manifest.table, self.table(manifest)
        if table.size == complete.size:
            return sent
        trained = replaced(complete, initial, table, sent)
        if encoder is not None:
            trained[complete.where(ENCODER)] = encoder
        return trained

    def _own(self, manifest: Manifest) -> tuple[str, ...]:
        parts = self.personal.parts(manifest.table)
        return tuple(part for part in manifest.table.parts if part.removeprefix(STATE) in parts)
