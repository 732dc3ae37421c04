"""Training that a power cut interrupts goes on in the middle of an epoch, to the same weights bit for bit.

state/checkpoint holds the latest position of the round that is being trained: a header (8 bytes of length, little
endian, and JSON) and, as they lie in memory, the weights (D,) and the optimizer's state. It is written whole, at most
every `interval_s`, because each writing wears a card out by these vectors' size. Where the samples are in their order
and what is random follow from the plan's seed and the position; so the header has only what has been summed up.

A checkpoint belongs to one plan, data set and engine (`key`); for any other it is as if it were not there, and so it is
if it is damaged. It stays until the next round replaces it.
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
    """What a checkpoint says beside the vectors. `val_loss` is of the weights that came; `wall_s` was spent before."""

    key: str
    position: TrainingProgress
    val_loss: dict[str, float] | None
    wall_s: float


def key_of(plan: Plan, samples: int, engine: str) -> str:
    """What must be the same for training to go on: the plan, how many samples there are, what computes."""
    same = (plan.round, plan.group, plan.tasks, plan.bundle.digest, plan.weights.digest, plan.training, samples, engine)
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


class Checkpoint:
    """One file. `interval_s` is at least between two writings; 0 writes at every occasion."""

    def __init__(self, path: Path, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._written_s = clock()

    @property
    def is_due(self) -> bool:
        """Whether it is time to write again."""
        return self._clock() - self._written_s >= self._interval_s

    def load(self, key: str, weights: Vector, state: Vector) -> CheckpointHeader | None:
        """The header of this key's checkpoint, whose vectors are read into `weights` (D,) and `state`.

        None, and nothing changed, if there is none of this key and of these lengths. Raises OSError.
        """
        self._written_s = self._clock()
        try:
            with self._path.open("rb") as file:
                length = int.from_bytes(file.read(LENGTH_BYTES), "little")
                if length > MAX_HEADER_BYTES:
                    return None
                header = msgspec.json.decode(file.read(length), type=CheckpointHeader)
                whole = LENGTH_BYTES + length + weights.nbytes + state.nbytes
                if header.key != key or self._path.stat().st_size != whole:
                    return None
                for vector in (weights, state):
                    vector[...] = np.fromfile(file, np.float32, len(vector))
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return header

    def forget(self) -> None:
        """There is none any more. Raises OSError."""
        self._path.unlink(missing_ok=True)

    def save(self, header: CheckpointHeader, weights: Vector, state: Vector) -> None:
        """Write whole. Raises OSError."""
        data = msgspec.json.encode(header)
        with atomic_file(self._path) as file:
            file.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
            for vector in (weights, state):
                file.write(vector.data.cast("B"))
        self._written_s = self._clock()
