"""A device's way to a host process of its own machine, over the process's pipes."""

import secrets
import time

import msgspec

from edge_runtime.split_learning.client import EncoderServerUnavailable
from edge_runtime.wire.encoder_pipe import EncoderRound, EncoderServerProcess, PeakMemory, PipeClosed
from edge_runtime.wire.fragments import Assembler, to_fragments


class PipeChannel:
    """A device's channel to a host process (edge_runtime.split_learning.client.Channel). Used from one thread."""

    def __init__(self, host: EncoderServerProcess, device: str) -> None:
        self._host, self._name = host, device.encode() + b"\0"
        self._number = secrets.randbits(32)
        self._assembler: Assembler | None = None
        self.bytes_up = self.bytes_down = 0

    def open(self, opened: EncoderRound, longest_bytes: int) -> None:
        """Begin a round, and wait until it is open. Raises EncoderServerUnavailable."""
        self._assembler = Assembler(longest_bytes)
        self._host.open(opened)
        self._ask(b"o")

    def peak_rss_bytes(self) -> int | None:
        """The most memory that the host has had resident. Raises EncoderServerUnavailable."""
        self._host.send((b"p", b""))
        return msgspec.json.decode(self._ask(b"p"), type=PeakMemory).peak_rss_bytes

    def send(self, data: bytes) -> None:
        """Send without waiting for an answer."""
        self.bytes_up += len(data)
        self._number += 1
        for piece in to_fragments(self._number, data):
            self._host.send((b"m", self._name + piece))

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None if none comes in that time. Raises EncoderServerUnavailable."""
        assert self._assembler is not None
        until_s = time.monotonic() + timeout_s
        while (piece := self._next(b"m", max(0.0, until_s - time.monotonic()))) is not None:
            if (data := self._assembler.accept(piece[len(self._name) :])) is not None:
                self.bytes_down += len(data)
                return data
        return None

    def _ask(self, tag: bytes) -> bytes:
        found = self._next(tag, None)
        assert found is not None
        return found

    def _next(self, tag: bytes, timeout_s: float | None) -> bytes | None:
        """The next frame with this tag; None if none comes in time."""
        try:
            while (frame := self._host.receive(timeout_s)) is not None:
                if frame[0] == tag:
                    return frame[1]
        except PipeClosed as exc:
            raise EncoderServerUnavailable(str(exc)) from exc
        return None
