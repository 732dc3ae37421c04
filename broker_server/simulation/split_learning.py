"""The host of a general model within a simulation: the process that does a device's work computes the encoder too.

What it is told of the round, the weights and the optimizer's state are read when the work begins on the simulated
clock, and go with it: what else happens meanwhile in simulated time cannot change them.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_runtime.split_learning.pipe_server import load_state, open_round, read_weights
from edge_runtime.training.model import GraphCache
from edge_runtime.wire.encoder_pipe import EncoderRound
from edge_runtime.wire.fragments import fragmented_bytes
from edge_runtime.wire.manifest import Manifest, graph_path, read_folder
from edge_runtime.wire.split_learning import MessageLayout
from edge_runtime.wire.tensors import Vector

Sent = TypeVar("Sent", bound=msgspec.Struct)


@dataclass(frozen=True, kw_only=True, eq=False)
class General:
    """The encoder's side of a plan: `weights` (P,), and the optimizer's state if the device goes on with one."""

    device: str
    bundle: Path
    opened: EncoderRound
    weights: Vector
    state: Vector | None


def general(device: str, bundle: Path, opened: EncoderRound) -> General:
    """What is known of a round when a device's work on it begins. Raises BundleInvalid."""
    manifest = manifest_of(bundle)
    return General(
        device=device,
        bundle=bundle,
        opened=opened,
        weights=read_weights(Path(opened.weights), manifest.general),
        state=load_state(opened, device, manifest),
    )


class HostedExchange:
    """A device's exchange (edge_runtime.agent.work.Exchange) with a host of its own in this process.

    Every question is answered when it is asked. Bytes are counted as the pieces that a link would carry.
    """

    def __init__(self, side: General, shelf: GraphCache) -> None:
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
        """A round begins; what came before is forgotten."""
        self._answers.clear()

    def send(self, data: bytes) -> None:
        """Have a message answered."""
        self.bytes_up += fragmented_bytes(len(data))
        for _, answer in self._host.on_message(self._device, data, 0.0):
            self.bytes_down += fragmented_bytes(len(answer))
            self._answers.append(answer)

    def receive(self, timeout_s: float) -> bytes | None:  # noqa: ARG002
        """The next answer; None if there is none. Never waits."""
        return self._answers.popleft() if self._answers else None


def as_sent(value: Sent) -> Sent:
    """The same as it is after a way through JSON.

    Messages leave out what is the default, by identity; strings that came to another process by pickle are not that.
    """
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))


@lru_cache(maxsize=4)
def manifest_of(bundle: Path) -> Manifest:
    """A bundle's manifest, whose files are checked once. Raises BundleInvalid."""
    return read_folder(bundle)
