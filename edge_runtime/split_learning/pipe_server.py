"""The encoder server as a process: it opens one round after another, as its standard input asks.

The frames, and the side that starts this process, are in edge_runtime.wire.encoder_pipe.
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
from edge_runtime.training.graph_cache import Graphs
from edge_runtime.training.optimizer import make_optimizer
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
from edge_runtime.wire.files import atomic_file
from edge_runtime.wire.fragments import Assembler, to_fragments
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.names import is_device_id
from edge_runtime.wire.split_learning import MessageLayout
from edge_runtime.wire.tensors import TensorTable, Vector, file_parts

TICK_S = 1.0


@dataclass(eq=False)
class _Sender:
    """The fragments of one device in a round: those to put together, and the number of the last message sent."""

    assembler: Assembler
    number: int


class PipeServer:
    """Serves one round after another over frames. Does no I/O but reading weights and writing results."""

    def __init__(self, manifest: Manifest, graph: Graphs) -> None:
        self._manifest, self._graph = manifest, graph
        self._server: EncoderServer | None = None
        self._longest_bytes = 0
        self._senders: dict[str, _Sender] = {}

    def on_frame(self, frame: Frame, now_s: float) -> list[Frame]:
        """Handle a frame; return the frames to send. Raises PipeClosed for an invalid one."""
        tag, data = frame
        if tag == b"p":
            return [(b"p", msgspec.json.encode(PeakMemory(peak_rss_bytes=peak_rss_bytes())))]
        if tag == b"o":
            self._open(data)
            return [(b"o", b"")]
        name, _, fragment = data.partition(b"\0")
        device = name.decode(errors="replace")
        if tag != b"m" or not is_device_id(device) or self._server is None:
            raise PipeClosed(f"a frame {tag!r} of {len(data)} bytes is not valid, or no round is open yet")
        try:
            message = self._sender(device).assembler.accept(fragment)
        except MessageInvalid:
            self._server.errors[device] += 1
            return []
        return [] if message is None else self._frames(self._server.on_message(device, message, now_s))

    def on_tick(self, now_s: float) -> list[Frame]:
        """End the sessions of silent devices; return the frames to send."""
        return [] if self._server is None else self._frames(self._server.on_tick(now_s))

    def _sender(self, device: str) -> _Sender:
        if device not in self._senders:
            self._senders[device] = _Sender(Assembler(self._longest_bytes), secrets.randbits(32))
        return self._senders[device]

    def _frames(self, sent: list[tuple[str, bytes]]) -> list[Frame]:
        frames: list[Frame] = []
        for device, data in sent:
            sender = self._sender(device)
            sender.number += 1
            frames += [(b"m", device.encode() + b"\0" + fragment) for fragment in to_fragments(sender.number, data)]
        return frames

    def _open(self, data: bytes) -> None:
        try:
            encoder_round = msgspec.json.decode(data, type=EncoderRound)
            weights = read_weights(Path(encoder_round.weights), self._manifest.encoder_table)
        except (msgspec.MsgspecError, BundleInvalid) as exc:
            raise PipeClosed(f"the round cannot be opened: {exc}") from exc
        layout = MessageLayout.of(self._manifest, encoder_round.samples)
        self._longest_bytes = layout.max_message_bytes
        self._senders.clear()
        self._server = open_round(self._manifest, self._graph, weights, layout, encoder_round)


def open_round(
    manifest: Manifest,
    graph: Graphs,
    weights: Vector,
    layout: MessageLayout,
    encoder_round: EncoderRound,
    initial_state: Callable[[str], Vector | None] | None = None,
) -> EncoderServer:
    """Return the encoder server of a round, which writes what devices have trained to files.

    `initial_state` gives a device's optimizer state from the previous round, by default from the files of that round.
    """
    results = Path(encoder_round.results)

    def on_finished(device: str, replica: EncoderReplica) -> None:
        if encoder_round.training is not None:
            write_result(results, device, replica, manifest.encoder_table)

    return EncoderServer(
        manifest,
        graph,
        weights,
        encoder_round.training,
        encoder_round.round,
        layout=layout,
        max_devices=encoder_round.max_devices,
        idle_s=encoder_round.idle_s,
        precision=encoder_round.precision,
        initial_state=initial_state or (lambda device: load_state(encoder_round, device, manifest)),
        on_finished=on_finished,
    )


def write_result(folder: Path, device: str, replica: EncoderReplica, table: TensorTable) -> None:
    """Write the encoder that a device has trained, after its optimizer's state, so that both are there with it."""
    path = result_file(folder, device)
    with atomic_file(path.with_suffix(".state")) as file:
        file.write(replica.state.data.cast("B"))
    with atomic_file(path) as file:
        file.writelines(file_parts(table, replica.weights))


def load_state(encoder_round: EncoderRound, device: str, manifest: Manifest) -> Vector | None:
    """Return the optimizer's state of a device that took part in the previous round; None if it begins at zero."""
    if encoder_round.previous is None or encoder_round.training is None:
        return None
    size = make_optimizer(encoder_round.training).table(manifest.encoder_table).size
    try:
        path = result_file(Path(encoder_round.previous), device).with_suffix(".state")
        state = np.fromfile(path, np.float32)
    except FileNotFoundError:
        return None
    return state if len(state) == size else None


def read_weights(path: Path, table: TensorTable) -> Vector:
    """Read the tensors of a table from a safetensors file, which may have others. Raises BundleInvalid."""
    weights = np.empty(table.size, np.float32)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name, view in table.views(weights).items():
                view[...] = file.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as exc:
        raise BundleInvalid(f"{path} cannot be read: {exc}") from exc
    return weights


def serve(server: PipeServer, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
    """Handle frames until the input ends. Raises PipeClosed."""
    while True:
        frames = server.on_tick(time.monotonic())
        if select.select([incoming], [], [], TICK_S)[0]:
            frame = read_frame(incoming)
            if frame is None:
                return
            frames += server.on_frame(frame, time.monotonic())
        for reply in frames:
            write_frame(outgoing, reply)
