"""Momentum between rounds: kept on the device, never sent.

A device that trained the round before goes on with the momentum it had. One that did not (it was not sampled, it is
new, the group is another) begins at zero: old momentum would push the new average where an old model wanted to go. So
a federation of one device trains exactly as that device would alone. The last two rounds are kept, so that a round
whose end was lost in a power cut can be done again from the same point.
"""

from pathlib import Path

import numpy as np

from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.files import write_whole
from edge_runtime.wire.tensors import TensorTable, Vector, pack, unpack


class VelocityStore:
    """Momentum by round in a folder of the device's state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, table: TensorTable, previous_round: int) -> Vector:
        """The momentum that `previous_round` ended with, or zeros if it was not this group's or is not there."""
        try:
            return np.array(unpack(table, self._path(previous_round).read_bytes()))
        except (FileNotFoundError, TensorsInvalid):
            return np.zeros(table.size, np.float32)

    def save(self, table: TensorTable, velocity: Vector, of_round: int) -> None:
        """Keep the momentum that a round ended with, and the one before it."""
        write_whole(self._path(of_round), pack(table, velocity))
        for path in self._folder.glob("*.safetensors"):
            if path not in (self._path(of_round), self._path(of_round - 1)):
                path.unlink()

    def _path(self, of_round: int) -> Path:
        return self._folder / f"{of_round}.safetensors"
