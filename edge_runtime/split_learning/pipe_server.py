"""The process of a general model's host: one round after another, for whoever writes to its standard input.

Frames, and the side that starts this process: edge_runtime.wire.encoder_pipe.
"""

import secrets
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import safetensors

from edge_runtime.split_learning.replica import EncoderReplica
from edge_runtime.split_learning.server import EncoderServer
from edge_runtime.training.engine import Graph
from edge_runtime.training.optimizer import optimizer
from edge_runtime.training.process_memory import peak_rss_bytes
from edge_runtime.wire.encoder_pipe import (
    EncoderRound,
    Frame,
    PeakMemory,
    PipeClosed,
    read_frame,
    result_file,
    write_frame,
)
from edge_runtime.wire.errors import BundleInvalid, MessageInvalid
from edge_runtime.wire.files import whole_file
from edge_runtime.wire.fragments import Assembler, to_fragments
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Training
from edge_runtime.wire.names import is_device_id
from edge_runtime.wire.split_learning import MessageLayout
from edge_runtime.wire.tensors import TensorTable, Vector, parts_of_file

TICK_S = 1.0


@dataclass(eq=False)
class _Caller:
    """One device's messages in a round."""

    assembler: Assembler
    number: int


class PipeServer:
    """The host of one round after the other."""

    def __init__(self, manifest: Manifest, graph: Callable[[str], Graph]) -> None:
        self._manifest, self._graph = manifest, graph
        self._host: EncoderServer | None = None
        self._longest_bytes = 0
        self._callers: dict[str, _Caller] = {}

    def received(self, frame: Frame, now_s: float) -> list[Frame]:
        """What is to be sent for a frame. Raises PipeClosed for one that nobody may send."""
        tag, data = frame
        if tag == b"p":
            return [(b"p", msgspec.json.encode(PeakMemory(peak_rss_bytes=peak_rss_bytes())))]
        if tag == b"o":
            self._open(data)
            return [(b"o", b"")]
        name, _, piece = data.partition(b"\0")
        device = name.decode(errors="replace")
        if tag != b"m" or not is_device_id(device) or self._host is None:
            raise PipeClosed(f"a frame {tag!r} of {len(data)} bytes, which is none, or before a round")
        try:
            message = self._caller(device).assembler.accept(piece)
        except MessageInvalid:
            self._host.errors[device] += 1
            return []
        return [] if message is None else self._framed(self._host.received(device, message, now_s))

    def tick(self, now_s: float) -> list[Frame]:
        """Time has passed."""
        return [] if self._host is None else self._framed(self._host.tick(now_s))

    def _caller(self, device: str) -> _Caller:
        if device not in self._callers:
            self._callers[device] = _Caller(Assembler(self._longest_bytes), secrets.randbits(32))
        return self._callers[device]

    def _framed(self, sent: list[tuple[str, bytes]]) -> list[Frame]:
        frames: list[Frame] = []
        for device, data in sent:
            caller = self._caller(device)
            caller.number += 1
            frames += [(b"m", device.encode() + b"\0" + piece) for piece in to_fragments(caller.number, data)]
        return frames

    def _open(self, data: bytes) -> None:
        try:
            opened = msgspec.json.decode(data, type=EncoderRound)
            weights = read_weights(Path(opened.weights), self._manifest.general)
        except (msgspec.MsgspecError, BundleInvalid) as exc:
            raise PipeClosed(f"a round that cannot be opened: {exc}") from exc
        layout = MessageLayout.of(self._manifest, opened.samples)
        self._longest_bytes = layout.longest_bytes
        self._callers.clear()
        self._host = open_host(self._manifest, self._graph, weights, layout, opened)


def open_host(
    manifest: Manifest,
    graph: Callable[[str], Graph],
    weights: Vector,
    layout: MessageLayout,
    opened: EncoderRound,
    state: Callable[[str], Vector | None] | None = None,
) -> EncoderServer:
    """The host of a round whose results go to files. `state` is of an earlier round, by default from its files."""
    results = Path(opened.results)

    def finished(device: str, replica: EncoderReplica) -> None:
        if opened.training is not None:
            write_result(results, device, replica, manifest.general)

    return EncoderServer(
        manifest,
        graph,
        weights,
        opened.training,
        opened.round,
        layout=layout,
        most_devices=opened.most_devices,
        idle_s=opened.idle_s,
        precision=opened.precision,
        state=state or (lambda device: state_before(opened, device, manifest)),
        finished=finished,
    )


def write_result(folder: Path, device: str, replica: EncoderReplica, table: TensorTable) -> None:
    """Write what a device has taught: the encoder's weights, and its optimizer's state before them."""
    path = result_file(folder, device)
    with whole_file(path.with_suffix(".state")) as file:
        file.write(replica.state.data.cast("B"))
    with whole_file(path) as file:
        for piece in parts_of_file(table, replica.weights):
            file.write(piece)


def state_before(opened: EncoderRound, device: str, manifest: Manifest) -> Vector | None:
    """The optimizer's state that a device goes on with in a round; None if it begins."""
    if opened.before is None or opened.training is None:
        return None
    return read_state(Path(opened.before), device, manifest, opened.training)


def read_state(folder: Path, device: str, manifest: Manifest, settings: Training) -> Vector | None:
    """The optimizer's state of a device that took part in an earlier round; None if there is none of this length."""
    size = optimizer(settings).table(manifest.general).size
    try:
        state = np.fromfile(result_file(folder, device).with_suffix(".state"), np.float32)
    except FileNotFoundError:
        return None
    return state if len(state) == size else None


def read_weights(path: Path, table: TensorTable) -> Vector:
    """Some of a file's tensors; the others are never in memory. Raises BundleInvalid."""
    weights = np.empty(table.size, np.float32)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name, view in table.views(weights).items():
                view[...] = file.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as exc:
        raise BundleInvalid(f"{path} cannot be read: {exc}") from exc
    return weights


def serve(rounds: PipeServer, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
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
