"""The encoder server's process: it computes the shared encoder for devices that have the stem and the heads alone.

The server itself runs no graph. It starts the process, sends it the round that is open, passes fragments of messages
between it and the devices, and reads the encoders that devices have trained with it (edge_runtime.wire.encoder_pipe).

Rules
- The process is started by the first fragment of a round's first device, and opens a round with its first fragment.
- A process that ends is started again, and the devices at work begin the round again; RESTARTS times in a round.
- A trained encoder is on the disk before its device learns that it has finished, so a server that is killed loses
  nothing that counts.
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
MAX_FRAMES = 256
"""Frames of the process that are taken at once: other messages have their turn in between."""


class EncoderUnavailable(RuntimeError):
    """The encoder server's process does not run, and starting it again does not help."""


@dataclass(frozen=True, kw_only=True)
class EncoderRounds:
    """The settings of split learning on the server, and the folder `results` with the encoders that devices train."""

    results: Path
    settings: SplitLearning
    most_devices: int
    idle_s: float

    def encoder_round(self, round_number: int, training: Training | None, weights: Path) -> EncoderRound:
        """Return what the encoder server needs of a round that begins with the weights in a file."""
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
        """Return the encoder that a device has trained in a round, laid out by `table`. Raises TensorsInvalid."""
        try:
            data = result_file(self._folder(round_number), device).read_bytes()
        except OSError as exc:
            raise TensorsInvalid("the encoder server has no trained encoder of this device") from exc
        return unpack(table, data)

    def delete_before(self, round_number: int) -> None:
        """Delete the trained encoders of earlier rounds."""
        if self.results.is_dir():
            for folder in self.results.iterdir():
                if folder.name.isdecimal() and int(folder.name) < round_number:
                    shutil.rmtree(folder)

    def _folder(self, round_number: int) -> Path:
        return self.results.resolve() / str(round_number)


class EncoderSupervisor:
    """Runs the encoder server's process while it is needed. `start` starts one."""

    def __init__(self, start: Callable[[], EncoderServerProcess]) -> None:
        self._start = start
        self._process: EncoderServerProcess | None = None
        self._round: int | None = None
        self._ends = 0

    def send(self, round_number: int, opening: Callable[[], EncoderRound], device: str, fragment: bytes) -> bool:
        """Pass on a device's fragment in a round; return False if the process is too far behind to take it.

        `opening` gives what the process needs of the round; it is called only when the process is opened for it.
        Raises EncoderUnavailable.
        """
        if round_number != self._round:
            self._round, self._ends = round_number, 0
            if self._process is not None:
                self._process.open(opening())
        if self._process is None:
            try:
                self._process = self._start()
            except OSError as exc:
                raise EncoderUnavailable(f"the encoder server cannot be started: {exc.strerror}") from exc
            self._process.open(opening())
        return self._process.send((b"m", device.encode() + b"\0" + fragment))

    def receive(self) -> list[tuple[str, bytes]]:
        """Return the fragments that the process has for devices, as (device, fragment). Raises EncoderUnavailable."""
        fragments: list[tuple[str, bytes]] = []
        try:
            while self._process is not None and len(fragments) < MAX_FRAMES and (frame := self._process.receive(0.0)):
                fragments += _addressed(frame)
        except PipeClosed as exc:
            self.close()
            self._ends += 1
            if self._ends > RESTARTS:
                raise EncoderUnavailable(f"{exc}, {self._ends} times in round {self._round}") from exc
        return fragments

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()


def _addressed(frame: Frame) -> list[tuple[str, bytes]]:
    tag, data = frame
    device, _, fragment = data.partition(b"\0")
    return [(device.decode(), fragment)] if tag == b"m" else []
