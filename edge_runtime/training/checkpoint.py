"""Checkpoints: after a power cut, training goes on in the middle of an epoch, to the same weights bit for bit.

state/checkpoint holds the progress of the round in training: a header (8 bytes of length, little endian, and JSON),
then the weights (D,) and the optimizer's state as they are in memory. The file is replaced at most every `interval_s`,
because each writing wears a memory card. The order of the samples and all seeds follow from the plan's seed and the
number of steps, so the header needs only the sums.

A checkpoint belongs to one plan, data set and engine (`key`). For any other, or if it is damaged, it counts as absent.
It stays until the next round replaces it.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.training.progress import TrainingProgress
from edge_runtime.wire.files import atomic_file
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.tensors import Vector

MAX_HEADER_BYTES = 1024**2
LENGTH_BYTES = 8


class CheckpointHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of a checkpoint. `val_loss` is of the received weights; `wall_s` was spent before the checkpoint."""

    key: str
    progress: TrainingProgress
    val_loss: dict[str, float] | None
    wall_s: float


def key_of(plan: Plan, samples: int, engine: str) -> str:
    """Return a digest of everything that must be the same to go on: plan, number of samples, engine."""
    same = (
        *(plan.round, plan.group, plan.tasks, plan.bundle.digest, plan.weights.digest),
        *(plan.training, plan.personal, plan.held, samples, engine),
    )
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


class Checkpoint:
    """One checkpoint file. `interval_s` is the least time between two writings; with 0 each `save` is due."""

    def __init__(self, path: Path, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._written_s = clock()

    @property
    def is_due(self) -> bool:
        """True when it is time to write again."""
        return self._clock() - self._written_s >= self._interval_s

    def load(self, key: str, weights: Vector, state: Vector) -> CheckpointHeader | None:
        """Read this key's checkpoint into `weights` (D,) and `state`; return its header.

        Return None, and change nothing, if there is none of this key and these lengths. Raises OSError.
        """
        self._written_s = self._clock()
        try:
            with self._path.open("rb") as file:
                length = int.from_bytes(file.read(LENGTH_BYTES), "little")
                if length > MAX_HEADER_BYTES:
                    return None
                header = msgspec.json.decode(file.read(length), type=CheckpointHeader)
                size_bytes = LENGTH_BYTES + length + weights.nbytes + state.nbytes
                if header.key != key or self._path.stat().st_size != size_bytes:
                    return None
                for vector in (weights, state):
                    vector[...] = np.fromfile(file, np.float32, len(vector))
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return header

    def delete(self) -> None:
        """Delete the checkpoint, if there is one. Raises OSError."""
        self._path.unlink(missing_ok=True)

    def save(self, header: CheckpointHeader, weights: Vector, state: Vector) -> None:
        """Replace the checkpoint. Raises OSError."""
        data = msgspec.json.encode(header)
        with atomic_file(self._path) as file:
            file.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
            for vector in (weights, state):
                file.write(vector.data.cast("B"))
        self._written_s = self._clock()
