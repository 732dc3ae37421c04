"""A stem of the device's own: trained here, never sent, and in the place of the one that the server sends.

state/stem/<round>.safetensors is what a round has made of it. The last two rounds are kept, so that one whose end was
lost in a power cut is done again from where it began. What the server sends stands where there is none yet, and in the
update in any case.

Source: personal layers as in FedBone (Chen et al., JCST 39(5), 2024), whose clients keep embedding and head.
"""

from pathlib import Path

import numpy as np

from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.tensors import TensorTable, Vector, pack, unpack

STEM = "stem"


class LocalStem:
    """The stem of a device, by round, in a folder of its state. Raises OSError as the file system does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_into(self, table: TensorTable, came: Vector, of_round: int) -> Vector:
        """The weights (D,) that a round begins with: those that came, with the stem as the device last trained it."""
        before = [number for number in self._rounds() if number < of_round]
        if not before:
            return came
        try:
            stem = unpack(table.select([STEM]), self._path(max(before)).read_bytes())
        except TensorsInvalid:
            return came
        return _with_stem(table, came, stem)

    def take_out(self, table: TensorTable, came: Vector, trained: Vector, of_round: int) -> Vector:
        """Keep the stem of weights that a round has trained; the weights with the one that came are for the server."""
        stem = table.select([STEM])
        write_atomic(self._path(of_round), pack(stem, trained[table.parts[STEM]]))
        for number in self._rounds():
            if number not in {of_round, of_round - 1}:
                self._path(number).unlink()
        return _with_stem(table, trained, came[table.parts[STEM]])

    def _rounds(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal()]

    def _path(self, of_round: int) -> Path:
        return self._folder / f"{of_round}.safetensors"


def _with_stem(table: TensorTable, weights: Vector, stem: Vector) -> Vector:
    changed = np.array(weights)
    changed[table.parts[STEM]] = stem
    return changed
