"""A device's channel to an encoder server on the same machine, through the pipes of its process."""

import secrets
import time

import msgspec

from edge_runtime.split_learning.client import EncoderServerUnavailable
from edge_runtime.wire.encoder_pipe import EncoderRound, EncoderServerProcess, PeakMemory, PipeClosed
from edge_runtime.wire.fragments import Assembler, to_fragments


class PipeChannel:
    """A MessageChannel to the process of an encoder server. Used from one thread."""

    def __init__(self, server: EncoderServerProcess, device: str) -> None:
        self._server, self._name = server, device.encode() + b"\0"
        self._number = secrets.randbits(32)
        self._assembler: Assembler | None = None
        self.bytes_up = self.bytes_down = 0

    def open(self, encoder_round: EncoderRound, max_message_bytes: int) -> None:
        """Open a round, and wait until it is open. Raises EncoderServerUnavailable."""
        self._assembler = Assembler(max_message_bytes)
        self._server.open(encoder_round)
        self._await_frame(b"o")

    def peak_rss_bytes(self) -> int | None:
        """Return the peak of the server's resident memory. Raises EncoderServerUnavailable."""
        self._server.send((b"p", b""))
        return msgspec.json.decode(self._await_frame(b"p"), type=PeakMemory).peak_rss_bytes

    def send(self, data: bytes) -> None:
        """Send without waiting for a reply."""
        self.bytes_up += len(data)
        self._number += 1
        for fragment in to_fragments(self._number, data):
            self._server.send((b"m", self._name + fragment))

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next message, or None if none comes in that time. Raises EncoderServerUnavailable."""
        assert self._assembler is not None
        until_s = time.monotonic() + timeout_s
        while (content := self._next(b"m", max(0.0, until_s - time.monotonic()))) is not None:
            if (data := self._assembler.accept(content[len(self._name) :])) is not None:
                self.bytes_down += len(data)
                return data
        return None

    def _await_frame(self, tag: bytes) -> bytes:
        content = self._next(tag, None)
        assert content is not None
        return content

    def _next(self, tag: bytes, timeout_s: float | None) -> bytes | None:
        """Return the content of the next frame with this tag, or None if none comes in time."""
        try:
            while (frame := self._server.receive(timeout_s)) is not None:
                if frame[0] == tag:
                    return frame[1]
        except PipeClosed as exc:
            raise EncoderServerUnavailable(str(exc)) from exc
        return None
