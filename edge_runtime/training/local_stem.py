"""The local stem: trained on this device, never sent, and used instead of the stem that the server sends.

state/stem/<round>.safetensors is the stem after a round. The last two rounds are kept, so that a round that a power cut
interrupts is repeated from its beginning. The server's stem is used while there is no local one. The update always has
the stem as the server sent it.

Source: personal layers as in FedBone (Chen et al., JCST 39(5), 2024), whose clients keep embedding and head.
"""

from pathlib import Path

import numpy as np

from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.tensors import TensorTable, Vector, pack, unpack

STEM = "stem"


class LocalStem:
    """The stem of a device after each round, in a folder of its state. All calls may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self, table: TensorTable, received: Vector, of_round: int) -> Vector:
        """Return the received weights (D,) with the stem as the device last trained it.

        A table without a stem, because all of that is fixed, has nothing to keep.
        """
        before = [number for number in self._rounds() if number < of_round]
        if not before or STEM not in table.parts:
            return received
        try:
            stem = unpack(table.select([STEM]), self._path(max(before)).read_bytes())
        except TensorsInvalid:
            return received
        return _with_stem(table, received, stem)

    def save(self, table: TensorTable, received: Vector, trained: Vector, of_round: int) -> Vector:
        """Save the stem of trained weights; return the weights for the server, with the stem that it sent."""
        if STEM not in table.parts:
            return trained
        stem = table.select([STEM])
        write_atomic(self._path(of_round), pack(stem, trained[table.parts[STEM]]))
        for number in self._rounds():
            if number not in {of_round, of_round - 1}:
                self._path(number).unlink()
        return _with_stem(table, trained, received[table.parts[STEM]])

    def _rounds(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal()]

    def _path(self, of_round: int) -> Path:
        return self._folder / f"{of_round}.safetensors"


def _with_stem(table: TensorTable, weights: Vector, stem: Vector) -> Vector:
    changed = np.array(weights)
    changed[table.parts[STEM]] = stem
    return changed
