"""Split learning within a simulation: the process that does a device's work computes the encoder too.

The round, the weights and the optimizer's state are read when the work begins on the simulated clock, and go with it.
Later events in simulated time cannot change them.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_runtime.split_learning.pipe_server import load_state, open_round, read_weights
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.wire.bundle_folder import graph_path, read_folder
from edge_runtime.wire.encoder_pipe import EncoderRound
from edge_runtime.wire.fragments import fragmented_bytes
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.split_learning import MessageLayout
from edge_runtime.wire.tensors import Vector

Sent = TypeVar("Sent", bound=msgspec.Struct)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderState:
    """The encoder's side of a plan: `weights` (P,), and the optimizer's state if the device goes on with one."""

    device: str
    bundle: Path
    opened: EncoderRound
    weights: Vector
    state: Vector | None


def encoder_state(device: str, bundle: Path, opened: EncoderRound) -> EncoderState:
    """Return the encoder's side of a round as it is when a device's work begins. Raises BundleInvalid."""
    manifest = manifest_of(bundle)
    return EncoderState(
        device=device,
        bundle=bundle,
        opened=opened,
        weights=read_weights(Path(opened.weights), manifest.encoder_table),
        state=load_state(opened, device, manifest),
    )


class LocalEncoderChannel:
    """A device's split-learning channel to an encoder server of its own in this process.

    Every request is answered at once. Bytes are counted as the fragments that a link would carry.
    """

    def __init__(self, side: EncoderState, shelf: GraphCache) -> None:
        """Graphs are those of the bundle's folder, loaded by `shelf`. Raises BundleInvalid."""
        manifest = manifest_of(side.bundle)
        graphs = shelf.of(manifest, lambda name, _: graph_path(side.bundle, name))
        opened = as_sent(side.opened)
        layout = MessageLayout.of(manifest, opened.samples)
        self._host = open_round(manifest, graphs, side.weights, layout, opened, lambda _: side.state)
        self._device = side.device
        self._answers: deque[bytes] = deque()
        self.bytes_up = self.bytes_down = 0

    def open(self, max_message_bytes: int) -> None:  # noqa: ARG002  (a seam's signature)
        """Begin a round and drop earlier answers."""
        self._answers.clear()

    def send(self, data: bytes) -> None:
        """Have the encoder server answer a message."""
        self.bytes_up += fragmented_bytes(len(data))
        for _, answer in self._host.on_message(self._device, data, 0.0):
            self.bytes_down += fragmented_bytes(len(answer))
            self._answers.append(answer)

    def receive(self, timeout_s: float) -> bytes | None:  # noqa: ARG002
        """Return the next answer; None if there is none. Never waits."""
        return self._answers.popleft() if self._answers else None


def as_sent(value: Sent) -> Sent:
    """Return the value as it is after a way through JSON.

    Messages leave out defaults, by identity; strings that came to another process by pickle are not identical.
    """
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))


@lru_cache(maxsize=4)
def manifest_of(bundle: Path) -> Manifest:
    """Return a bundle's manifest, whose files are checked once. Raises BundleInvalid."""
    return read_folder(bundle)
