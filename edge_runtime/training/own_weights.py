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
from edge_runtime.wire.tensors import (
    MAX_ENTRY_BYTES,
    MAX_TENSORS,
    TensorTable,
    Vector,
    file_parts,
    read_header,
    replaced,
    transfer,
    unpack,
)

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
            data = self._path(bundle, max(rounds)).read_bytes()
            header, _ = read_header(data, MAX_ENTRY_BYTES * (1 + MAX_TENSORS))
            kept = TensorTable.of({name: entry.shape for name, entry in header.items()})
            own = unpack(kept, data)
        except TensorsInvalid:
            return received
        shapes = {tensor.name: tensor.shape for tensor in kept.tensors}
        usable = {t.name: t.shape for t in table.tensors if t.part in parts and shapes.get(t.name) == t.shape}
        if not usable:
            return received
        common = TensorTable.of(usable)
        return replaced(table, received, common, transfer(kept, own, common))

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
