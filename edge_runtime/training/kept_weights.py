"""The file of trained weights: it is known to fit before training begins, and each whole epoch is kept in it."""

from pathlib import Path

from edge_runtime.wire.files import atomic_file, check_writable
from edge_runtime.wire.tensors import TensorTable, Vector, file_parts


class KeptWeights:
    """Keeps the weights of the last whole epoch in a file, or nowhere where no file is named."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._epochs = 0

    @property
    def said(self) -> str:
        """The end of a sentence about training that failed: where the weights of which epoch are; empty without any."""
        return f"; {self._path} has the weights of epoch {self._epochs}" if self._epochs else ""

    def check(self, table: TensorTable, weights: Vector) -> None:
        """Raise OSError, which names the file, unless weights (D,) can be written to it now."""
        if self._path is not None:
            check_writable(self._path, sum(len(part) for part in file_parts(table, weights)))

    def keep(self, table: TensorTable, weights: Vector, epoch: int) -> None:
        """Replace the file by the weights (D,) after an epoch, counted from 0.

        Raises OSError, which names the file; it then has the weights of the epoch before.
        """
        if self._path is None:
            return
        with atomic_file(self._path) as file:
            file.writelines(file_parts(table, weights))
        self._epochs = epoch + 1
