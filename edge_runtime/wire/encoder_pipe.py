"""The host of a general model as a process of its own, spoken to over its standard input and output.

So a program that may not load the engine, or should not hold the encoder, can have it computed. A frame is a tag (one
byte), the length of what follows (four bytes, the least significant first) and as many bytes:

    to the host     o  EncoderRound as JSON: a round begins             from it    o  nothing: the round is open
                    m  a device's name, a zero, a piece                    m  the same
                    p  nothing: how much memory?                           p  PeakMemory as JSON

The process ends when its input does. What it cannot go on with it says on standard error. What a device has taught in a
round is written to `result_file` before the device hears that it has finished.
"""

# coverage: every branch

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Annotated, Literal

import msgspec
from msgspec import Meta

from edge_runtime.wire.messages import Positive, Precision, RoundNumber, Training
from edge_runtime.wire.split_learning import MAX_SAMPLES

MAX_FRAME_BYTES = 2**20
WAITING_BYTES = 256 * 2**20
"""What may wait to be read by the host; beyond that pieces are dropped, and devices say their messages again."""
Frame = tuple[bytes, bytes]
Provider = Literal["cpu", "cuda"]
"""What the host computes with."""
PROCESS_ENDED = "the process of the general model's host has ended; it says why on standard error"


class EncoderRound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A round begins."""

    round: RoundNumber
    samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    """The most in a message."""
    training: Training | None
    """Null for a round that measures losses."""
    weights: str
    """The file with the encoder's tensors, perhaps among others."""
    results: str
    """The folder for what devices have taught."""
    before: str | None = None
    """The folder of the group's round before: who took part goes on with its optimizer's state."""
    precision: Precision = "fp32"
    most_devices: Annotated[int, Meta(ge=1, le=10_000)] = 16
    """At once: each takes the memory of a replica of the encoder's parameters."""
    idle_s: Positive = 120.0


class PeakMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most memory that the host has had resident; null where the system does not say."""

    peak_rss_bytes: int | None


class PipeClosed(RuntimeError):
    """The other side has gone, or says what no frame may be."""


def result_file(folder: Path, device: str) -> Path:
    """Where the encoder is that a device has trained (safetensors); `.state` beside it is its optimizer's state."""
    return folder / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.safetensors"


class EncoderServerProcess:
    """A host that this process has started. `arrived` is called, on another thread, when a frame has come.

    Threads of its own write and read, so this side never waits for the host to be done with something.
    """

    def __init__(self, command: list[str], arrived: Callable[[], None] = lambda: None) -> None:
        root = Path(__file__).resolve().parents[2]  # where the packages are, installed or not
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={**os.environ, "PYTHONPATH": paths}
        )
        self._arrived = arrived
        self._came: SimpleQueue[Frame | str] = SimpleQueue()
        """Frames, and last why there are no more."""
        self._leaving: SimpleQueue[Frame | None] = SimpleQueue()
        self._waiting_bytes = 0
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of_bundle(
        cls,
        bundle: Path,
        threads: int | None = None,
        provider: Provider = "cpu",
        arrived: Callable[[], None] = lambda: None,
    ) -> "EncoderServerProcess":
        """The host of a bundle's encoder."""
        words = ["--provider", provider, *([] if threads is None else ["--threads", str(threads)])]
        return cls([sys.executable, "-m", "edge_runtime", "general", str(bundle), *words], arrived)

    def open(self, opened: EncoderRound) -> None:
        """Begin a round."""
        self.send((b"o", msgspec.json.encode(opened)))

    def send(self, frame: Frame) -> bool:
        """Hand a frame over; False if too much waits already, and then it is dropped."""
        size = len(frame[1])
        with self._counting:
            if self._waiting_bytes + size > WAITING_BYTES:
                return False
            self._waiting_bytes += size
        self._leaving.put(frame)
        return True

    def receive(self, timeout_s: float | None) -> Frame | None:
        """The next frame; None if none comes in time. Raises PipeClosed when there will be no more."""
        try:
            frame = self._came.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(frame, str):
            self._came.put(frame)
            raise PipeClosed(frame)
        return frame

    def close(self, patience_s: float = 10.0) -> None:
        """End the process, which its closed input tells to end; it is killed if it does not within `patience_s`."""
        self._leaving.put(None)
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        _stream(self._process.stdout).close()

    def _write(self) -> None:
        outgoing = _stream(self._process.stdin)
        try:
            while (frame := self._leaving.get()) is not None:
                write_frame(outgoing, frame)
                with self._counting:
                    self._waiting_bytes -= len(frame[1])
        except OSError:
            pass  # the reading thread says that the process has gone
        finally:
            outgoing.close()

    def _read(self) -> None:
        incoming, why = _stream(self._process.stdout), PROCESS_ENDED
        try:
            while (frame := read_frame(incoming)) is not None:
                self._came.put(frame)
                self._arrived()
        except PipeClosed as exc:
            why = str(exc)
        self._came.put(why)
        self._arrived()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """The next frame; None at the end of the stream. Raises PipeClosed for half a frame, or one that is too large."""
    head = _exactly(stream, 5)
    if not head:
        return None
    length = int.from_bytes(head[1:], "little")
    if len(head) < 5 or length > MAX_FRAME_BYTES:
        raise PipeClosed(f"a frame of {length} bytes, or half a frame")
    data = _exactly(stream, length)
    if len(data) < length:
        raise PipeClosed("the stream ends within a frame")
    return head[:1], data


def write_frame(stream: IO[bytes], frame: Frame) -> None:
    """Write a frame whole."""
    left = memoryview(frame[0] + len(frame[1]).to_bytes(4, "little") + frame[1])
    while left:
        left = left[stream.write(left) :]
    stream.flush()


def _exactly(stream: IO[bytes], length: int) -> bytes:
    """So many bytes, or fewer where the stream ends."""
    pieces = []
    while length and (piece := stream.read(length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
