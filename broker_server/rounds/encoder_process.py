"""The host of a general model beside the server: a process that computes the encoder for devices that do not have it.

The server runs no graph. It starts the host, tells it which round is open, hands on what devices and host say to one
another, and reads what the host has written of each device's part (edge_runtime.wire.encoder_pipe).

Rules
- The host is started by the first piece of a round's first device, and opens a round with the round's first piece.
- A host that ends is started anew, and the devices at work begin the round anew; RESTARTS times in a round.
- What a device has taught is on the disk before the device is told that it has finished, so a server that is killed
  loses nothing that counts.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.wire.encoder_pipe import EncoderRound, EncoderServerProcess, Frame, PipeClosed, result_file
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.messages import SplitLearning, Training
from edge_runtime.wire.split_learning import EVALUATION_SAMPLES
from edge_runtime.wire.tensors import TensorTable, Vector, unpack

RESTARTS = 3
MOST_FRAMES = 256
"""Frames of the host that are taken at once: other messages have their turn in between."""


class EncoderUnavailable(RuntimeError):
    """There is no host of the general model, and starting one anew does not help."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How encoders are computed by a host. `results` is a folder of its own."""

    results: Path
    settings: SplitLearning
    most_devices: int
    idle_s: float

    def open(self, round_number: int, training: Training | None, weights: Path) -> EncoderRound:
        """What the host is told of a round that begins with the weights in a file."""
        before = self._folder(round_number - 1)
        begins = training is None or training.first_epoch == 0
        return EncoderRound(
            round=round_number,
            samples=EVALUATION_SAMPLES if training is None else training.batch,
            training=training,
            weights=str(weights.resolve()),
            results=str(self._folder(round_number)),
            previous=None if begins else str(before),
            precision=self.settings.precision,
            max_devices=self.most_devices,
            idle_s=self.idle_s,
        )

    def read(self, round_number: int, device: str, table: TensorTable) -> Vector:
        """The encoder that a device has trained, laid out by `table`. Raises TensorsInvalid."""
        try:
            data = result_file(self._folder(round_number), device).read_bytes()
        except OSError as exc:
            raise TensorsInvalid("the host of the general model has nothing of this device") from exc
        return unpack(table, data)

    def sweep(self, round_number: int) -> None:
        """Delete what devices have taught in rounds before this one."""
        if self.results.is_dir():
            for folder in self.results.iterdir():
                if folder.name.isdecimal() and int(folder.name) < round_number:
                    shutil.rmtree(folder)

    def _folder(self, round_number: int) -> Path:
        return self.results.resolve() / str(round_number)


class EncoderSupervisor:
    """The host's process while it is needed. `start` starts one."""

    def __init__(self, start: Callable[[], EncoderServerProcess]) -> None:
        self._start = start
        self._process: EncoderServerProcess | None = None
        self._round: int | None = None
        self._ends = 0

    def hear(self, opened: EncoderRound, device: str, piece: bytes) -> bool:
        """A device of the round `opened` said something; False if the host is too far behind to be told.

        Raises EncoderUnavailable.
        """
        if opened.round != self._round:
            self._round, self._ends = opened.round, 0
            if self._process is not None:
                self._process.open(opened)
        if self._process is None:
            try:
                self._process = self._start()
            except OSError as exc:
                raise EncoderUnavailable(f"the host of the general model cannot be started: {exc.strerror}") from exc
            self._process.open(opened)
        return self._process.send((b"m", device.encode() + b"\0" + piece))

    def poll(self) -> list[tuple[str, bytes]]:
        """What the host says: to which device, and a piece. Raises EncoderUnavailable."""
        said: list[tuple[str, bytes]] = []
        try:
            while self._process is not None and len(said) < MOST_FRAMES and (frame := self._process.receive(0.0)):
                said += _addressed(frame)
        except PipeClosed as exc:
            self.close()
            self._ends += 1
            if self._ends > RESTARTS:
                raise EncoderUnavailable(f"{exc}, {self._ends} times in round {self._round}") from exc
        return said

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()


def _addressed(frame: Frame) -> list[tuple[str, bytes]]:
    tag, data = frame
    device, _, piece = data.partition(b"\0")
    return [(device.decode(), piece)] if tag == b"m" else []
