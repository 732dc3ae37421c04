"""The encoder server as a process of its own, reached through its standard input and output.

A program that may not load the engine, or should not hold the encoder, has it computed there. A frame is a tag (one
byte), the length of its content (four bytes, the least significant first) and the content:

    to the server   o  EncoderRound as JSON: open a round       from it    o  nothing: the round is open
                    m  a device's name, a zero, a fragment                 m  the same
                    p  nothing: report the memory                          p  PeakMemory as JSON

The process ends when its input ends, or with a sentence on standard error when it cannot go on. The encoder that a
device has trained in a round is in `result_file` before the device gets the reply that it has finished.
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
"""The most that waits for the process to read it. More is dropped, and devices send their messages again."""
Frame = tuple[bytes, bytes]
Provider = Literal["cpu", "cuda"]
"""The processor of the encoder server."""
PROCESS_ENDED = "the process of the encoder server has ended: its standard error says why"


class EncoderRound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A round that the encoder server opens."""

    round: RoundNumber
    samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    """The most samples in a message."""
    training: Training | None
    """Null in a round that evaluates."""
    weights: str
    """The path of a file with the encoder's tensors, perhaps among others."""
    results: str
    """The folder for the encoders that devices have trained."""
    previous: str | None = None
    """The folder of the group's previous round: a device that took part goes on with its optimizer's state."""
    precision: Precision = "fp32"
    max_devices: Annotated[int, Meta(ge=1, le=10_000)] = 16
    """At once: each takes the memory of a replica of the encoder's parameters."""
    idle_s: Positive = 120.0


class PeakMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The peak of the encoder server's resident memory; null where the system does not report it."""

    peak_rss_bytes: int | None


class PipeClosed(RuntimeError):
    """The other side has gone, or has sent something that is not a valid frame."""


def result_file(folder: Path, device: str) -> Path:
    """Return the path of the encoder that a device has trained (safetensors); `.state` beside it is the optimizer's."""
    return folder / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.safetensors"


class EncoderServerProcess:
    """An encoder server that this process has started. `on_frame` is called, on another thread, after each frame.

    Threads of its own write and read, so this side never waits for the server to complete anything.
    """

    def __init__(self, command: list[str], on_frame: Callable[[], None] = lambda: None) -> None:
        root = Path(__file__).resolve().parents[2]  # where the packages are, installed or not
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={**os.environ, "PYTHONPATH": paths}
        )
        self._on_frame = on_frame
        self._received: SimpleQueue[Frame | str] = SimpleQueue()
        """Frames, and after the last one the reason why no more come."""
        self._outgoing: SimpleQueue[Frame | None] = SimpleQueue()
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
        on_frame: Callable[[], None] = lambda: None,
    ) -> "EncoderServerProcess":
        """Start the encoder server of a bundle."""
        words = ["--provider", provider, *([] if threads is None else ["--threads", str(threads)])]
        return cls([sys.executable, "-m", "edge_runtime", "encoder-server", str(bundle), *words], on_frame)

    def open(self, encoder_round: EncoderRound) -> None:
        """Open a round."""
        self.send((b"o", msgspec.json.encode(encoder_round)))

    def send(self, frame: Frame) -> bool:
        """Queue a frame; return False, and drop it, if too much waits already."""
        size = len(frame[1])
        with self._counting:
            if self._waiting_bytes + size > WAITING_BYTES:
                return False
            self._waiting_bytes += size
        self._outgoing.put(frame)
        return True

    def receive(self, timeout_s: float | None) -> Frame | None:
        """Return the next frame, or None if none comes in time. Raises PipeClosed when no more will come."""
        try:
            frame = self._received.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(frame, str):
            self._received.put(frame)
            raise PipeClosed(frame)
        return frame

    def close(self, patience_s: float = 10.0) -> None:
        """Close the process's input, which ends it; kill it if it has not ended within `patience_s`."""
        self._outgoing.put(None)
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
            while (frame := self._outgoing.get()) is not None:
                write_frame(outgoing, frame)
                with self._counting:
                    self._waiting_bytes -= len(frame[1])
        except OSError:
            pass  # the reading thread reports that the process has gone
        finally:
            outgoing.close()

    def _read(self) -> None:
        incoming, reason = _stream(self._process.stdout), PROCESS_ENDED
        try:
            while (frame := read_frame(incoming)) is not None:
                self._received.put(frame)
                self._on_frame()
        except PipeClosed as exc:
            reason = str(exc)
        self._received.put(reason)
        self._on_frame()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """Read the next frame; None at the end of the stream. Raises PipeClosed for half a frame or one too large."""
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
    """Write a complete frame."""
    left = memoryview(frame[0] + len(frame[1]).to_bytes(4, "little") + frame[1])
    while left:
        left = left[stream.write(left) :]
    stream.flush()


def _exactly(stream: IO[bytes], length: int) -> bytes:
    """Read this many bytes, or fewer where the stream ends."""
    chunks = []
    while length and (chunk := stream.read(length)):
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
