"""The weights that are a device's own: parts of a model, or a whole one, trained here and kept between rounds.

state/own/<bundle>/<round>.safetensors has them after a round, <bundle> being the first digits of the manifest's digest.
The last two rounds are kept, so that a round that a power cut interrupts is repeated from the same point. Weights of
another bundle go when those of a new one are saved. What a file lacks, because the device had no labels of a task then,
or because the file is damaged, is taken from what the server sends.
"""

# coverage: every branch

import shutil
from collections.abc import Collection
from pathlib import Path

from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.files import atomic_file
from edge_runtime.wire.tensors import TensorTable, Vector, file_parts, replaced, transfer, unpack_known

DIGITS = 16


class OwnWeights:
    """A device's own weights by bundle and round, in a folder of its state. All calls may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(
        self, table: TensorTable, received: Vector, parts: Collection[str], bundle: str, before_round: int
    ) -> Vector:
        """Return the received weights (D,) with the device's own in place of these `parts`.

        They are those that it last trained before a round. Where there are none, `received` itself is returned.
        """
        rounds = [number for number in self._rounds(bundle) if number < before_round]
        if not rounds or not parts:
            return received
        try:
            found = unpack_known(table.select(parts), self._path(bundle, max(rounds)).read_bytes())
        except TensorsInvalid:
            return received
        return received if found is None else replaced(table, received, *found)

    def save(self, table: TensorTable, trained: Vector, parts: Collection[str], bundle: str, of_round: int) -> None:
        """Save these parts of weights (D,) as they are after a round, and keep those of the round before."""
        if not parts:
            return
        own = table.select(parts)
        with atomic_file(self._path(bundle, of_round)) as file:
            for part in file_parts(own, transfer(table, trained, own)):
                file.write(part)
        for number in self._rounds(bundle):
            if number not in {of_round, of_round - 1}:
                self._path(bundle, number).unlink()
        for folder in self._folder.iterdir():
            if folder.name != bundle[:DIGITS]:
                shutil.rmtree(folder)

    def _rounds(self, bundle: str) -> list[int]:
        paths = (self._folder / bundle[:DIGITS]).glob("*.safetensors")
        return [int(path.stem) for path in paths if path.stem.isdecimal()]

    def _path(self, bundle: str, of_round: int) -> Path:
        return self._folder / bundle[:DIGITS] / f"{of_round}.safetensors"
