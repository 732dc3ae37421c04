"""The host of a general model as a process of its own, spoken to over its standard input and output.

So a program that may not load the engine, or should not hold the encoder, can have it computed. A frame is a tag (one
byte), the length of what follows (four bytes, the least significant first) and as many bytes:

    to the host     o  Open as JSON: a round begins             from it    o  nothing: the round is open
                    m  a device's name, a zero, its message                m  the same
                    p  nothing: how much memory?                           p  Peak as JSON

The process ends when its input does. What it cannot go on with it says on standard error.
"""

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import msgspec

from edge_runtime.engine import Graph
from edge_runtime.general.host import Host
from edge_runtime.general.remote import HostUnavailable
from edge_runtime.memory import peak_rss_bytes
from edge_runtime.wire.exchange import Precision
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Round, Training
from edge_runtime.wire.names import is_device_id
from edge_runtime.wire.tensors import Vector

MAX_FRAME_BYTES = 2**30
TICK_S = 1.0
Frame = tuple[bytes, bytes]
GONE = "the process of the general model's host has ended; it says why on standard error"


class Open(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A round begins; `after` is the device of the last round whose weights and optimizer's state it goes on with."""

    round: Round
    training: Training
    precision: Precision = "fp32"
    after: str | None = None


class Peak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most memory that the host has had resident; null where the system does not say."""

    peak_rss_bytes: int | None


class PipeClosed(RuntimeError):
    """The other side has gone, or says what no frame may be."""


class Rounds:
    """The host of one round after the other."""

    def __init__(self, manifest: Manifest, graph: Callable[[str], Graph], weights: Vector) -> None:
        """`weights` (P,) are those of the first round, laid out by `manifest.general`."""
        self._manifest, self._graph, self._weights = manifest, graph, weights
        self._host: Host | None = None

    def received(self, frame: Frame, now_s: float) -> list[Frame]:
        """What is to be sent for a frame. Raises PipeClosed for one that nobody may send."""
        tag, data = frame
        if tag == b"p":
            return [(b"p", msgspec.json.encode(Peak(peak_rss_bytes=peak_rss_bytes())))]
        if tag == b"o":
            self._open(data)
            return [(b"o", b"")]
        name, _, message = data.partition(b"\0")
        device = name.decode(errors="replace")
        if tag != b"m" or not is_device_id(device) or self._host is None:
            raise PipeClosed(f"a frame {tag!r} of {len(data)} bytes, which is none, or before a round")
        return _framed(self._host.received(device, message, now_s))

    def tick(self, now_s: float) -> list[Frame]:
        """Time has passed."""
        return [] if self._host is None else _framed(self._host.tick(now_s))

    def _open(self, data: bytes) -> None:
        try:
            opened = msgspec.json.decode(data, type=Open)
            states = {}
            if opened.after is not None and self._host is not None:
                self._weights, states[opened.after] = self._host.trained(opened.after)
        except (msgspec.MsgspecError, KeyError) as exc:
            raise PipeClosed(f"a round that cannot be opened: {exc}") from exc
        self._host = Host(
            self._manifest,
            self._graph,
            self._weights,
            opened.training,
            opened.round,
            precision=opened.precision,
            states=states,
        )


def serve(rounds: Rounds, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
    """Answer frames until the input ends. Raises PipeClosed."""
    while True:
        frames = rounds.tick(time.monotonic())
        if select.select([incoming], [], [], TICK_S)[0]:
            frame = read_frame(incoming)
            if frame is None:
                return
            frames += rounds.received(frame, time.monotonic())
        for answer in frames:
            write_frame(outgoing, answer)


class HostProcess:
    """A host that this process has started. `command` is what starts it.

    A thread takes what the host says while this side is still writing: were both to write at once, each would wait for
    the other to read.
    """

    def __init__(self, command: list[str]) -> None:
        root = Path(__file__).resolve().parents[2]  # where the packages are, installed or not
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={**os.environ, "PYTHONPATH": paths}
        )
        self._came: SimpleQueue[Frame | str] = SimpleQueue()
        """Frames, and last why there are no more."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def of_bundle(cls, bundle: Path, threads: int | None) -> "HostProcess":
        """The host of a bundle's encoder."""
        words = [] if threads is None else ["--threads", str(threads)]
        return cls([sys.executable, "-m", "edge_runtime", "general", str(bundle), *words])

    def open(self, opened: Open) -> None:
        """Begin a round. Raises HostUnavailable."""
        self.send((b"o", msgspec.json.encode(opened)))
        self.receive(b"o", None)

    def peak_rss_bytes(self) -> int | None:
        """The most memory that the host has had resident. Raises HostUnavailable."""
        self.send((b"p", b""))
        found = self.receive(b"p", None)
        assert found is not None
        return msgspec.json.decode(found, type=Peak).peak_rss_bytes

    def send(self, frame: Frame) -> None:
        """Write a frame. Raises HostUnavailable."""
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, frame)
        except OSError as exc:
            raise HostUnavailable(GONE) from exc

    def receive(self, tag: bytes, timeout_s: float | None) -> bytes | None:
        """The next frame with this tag; None if none comes in time. Raises HostUnavailable."""
        while True:
            try:
                frame = self._came.get(timeout=timeout_s)
            except Empty:
                return None
            if isinstance(frame, str):
                self._came.put(frame)
                raise HostUnavailable(frame)
            if frame[0] == tag:
                return frame[1]

    def close(self, patience_s: float = 10.0) -> None:
        """End the process, which its closed input tells to end; it is killed if it does not within `patience_s`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        incoming, why = self._process.stdout, GONE
        assert incoming is not None
        try:
            while (frame := read_frame(incoming)) is not None:
                self._came.put(frame)
        except PipeClosed as exc:
            why = str(exc)
        self._came.put(why)


class PipeChannel:
    """A device's channel to a host process (edge_runtime.general.remote.Channel)."""

    def __init__(self, host: HostProcess, device: str) -> None:
        self._host, self._name = host, device.encode() + b"\0"
        self.bytes_up = self.bytes_down = 0

    def send(self, data: bytes) -> None:
        """Send without waiting for an answer."""
        self.bytes_up += len(data)
        self._host.send((b"m", self._name + data))

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None if none comes in that time."""
        data = self._host.receive(b"m", timeout_s)
        if data is None:
            return None
        self.bytes_down += len(data) - len(self._name)
        return data[len(self._name) :]


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


def _framed(sent: list[tuple[str, bytes]]) -> list[Frame]:
    return [(b"m", device.encode() + b"\0" + data) for device, data in sent]
