"""State that a device carries from one round to the next in its state folder, and never sends.

state/momentum/<round>.safetensors    the optimizer's momentum at the end of a round
state/residual/<round>.safetensors    the part of a round's change that its compressed update left out (error feedback)

Rules
- A device that trained the round before goes on with the vector that it saved. A device that did not (it was not
  sampled, it is new, the group is another) begins without: both vectors belong to the weights of their round. Old
  momentum would push the new average where an old model was heading, and an old residual corrects weights that the
  federation has left behind. So a federation of one device trains exactly as that device would alone.
- The last two rounds are kept, so that a round whose end was lost in a power cut is done again from the same point
  and gives the same bytes.
- A vector's file is complete or absent; one that is damaged or not finite counts as absent.
"""

from pathlib import Path

import numpy as np

from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.files import atomic_file
from edge_runtime.wire.tensors import TensorTable, Vector, file_parts, unpack


class CarriedState:
    """One kind of vector by round, in a folder of the device's state. Raises OSError as the file system does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, table: TensorTable, previous_round: int) -> Vector | None:
        """Return the vector that `previous_round` ended with, as a copy; None if it is absent or of another group."""
        try:
            return np.array(unpack(table, self._path(previous_round).read_bytes()))
        except (FileNotFoundError, TensorsInvalid):
            return None

    def save(self, table: TensorTable, vector: Vector | None, of_round: int) -> None:
        """Save the vector that a round ended with, which may be none, and keep that of the round before."""
        if vector is None:
            self._path(of_round).unlink(missing_ok=True)  # the round may have been done before, otherwise
        else:
            with atomic_file(self._path(of_round)) as file:
                for part in file_parts(table, vector):
                    file.write(part)
        for path in self._folder.glob("*.safetensors"):
            if path not in (self._path(of_round), self._path(of_round - 1)):
                path.unlink()

    def _path(self, of_round: int) -> Path:
        return self._folder / f"{of_round}.safetensors"
