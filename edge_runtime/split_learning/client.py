"""The encoder of a device in split learning: the encoder server computes it.

It takes the place of the encoder (edge_runtime.training.encoder), so the trainer is the same, with the parameters of
stem and heads alone. A request is sent again until its reply comes or its deadline has passed. The server gives the
same reply to the same request, so nothing is computed twice.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from edge_runtime.training.encoder import Batch, Inputs, Pass, Representation
from edge_runtime.wire.embedding_noise import add_noise
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Precision, Training
from edge_runtime.wire.split_learning import (
    MAX_PARTS,
    MessageChannel,
    MessageKind,
    MessageLayout,
    SplitHeader,
    SplitMessage,
    decode,
    encode,
)

FIRST_PROBE = MAX_PARTS // 2
"""Probes take the upper half of the part numbers by turns, so replies to different requests are not confused."""
REPLIES: dict[str, MessageKind] = {
    "begin": "ready",
    "embedding": "representation",
    "probe": "representation",
    "gradient": "return",
    "mark": "marked",
    "finish": "finished",
}


class EncoderServerUnavailable(RuntimeError):
    """The encoder server sent no reply in time, or refused: this device cannot go on with the round."""


class EncoderSessionLost(EncoderServerUnavailable):
    """The encoder server has no session with this device's work any more: begin the round again."""


class RemoteEncoder:
    """The encoder of a bundle with a stem, computed by the encoder server, for one round.

    `batch` is the most samples in a message. Up to `in_flight` parts of a step are on their way at once, which keeps
    the link and both processors busy. A request is sent again after `resend_s`, and given up after `deadline_s`.
    Embeddings get `noise` (edge_runtime.wire.embedding_noise), drawn from the secret `noise_key`.
    """

    def __init__(
        self,
        manifest: Manifest,
        channel: MessageChannel,
        round_number: int,
        batch: int,
        *,
        precision: Precision = "fp32",
        resend_s: float = 5.0,
        deadline_s: float = 300.0,
        in_flight: int = 1,
        noise: float = 0.0,
        noise_key: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = MessageLayout.of(manifest, batch)
        self._channel, self._clock = channel, clock
        self._round = round_number
        self._precision: Precision = precision
        self._noise, self._noise_key = noise, noise_key
        self._resend_s, self._deadline_s, self._in_flight = resend_s, deadline_s, in_flight
        self._open: list[_Request] = []
        self._step, self._part, self._step_begins = -1, 0, True
        self._probes = 0

    def begin_round(self, step: int = 0) -> None:
        """Begin at an optimizer's step: 0, or one whose checkpoint was marked.

        Raises EncoderServerUnavailable, and EncoderSessionLost if the server has nothing of the step.
        """
        self._step, self._part, self._step_begins = step - 1, 0, True
        identity = 2**61 + secrets.randbits(61)  # of a fixed number of digits: a repeated round has the same traffic
        self._request(SplitHeader(kind="begin", round=self._round, step=step, seed=identity))

    def set_place(self, *place: int) -> None:
        """Name the batch that comes next: seed, epoch, step and, of a later micro-batch, its number."""
        self._part = place[3] if len(place) > 3 else 0
        self._step_begins = self._part == 0

    @property
    def in_flight(self) -> int:
        """The number of passes that may be on their way at once."""
        return self._in_flight

    def forward(self, source: Inputs, parameters: Inputs, next_state: Inputs, *, backward: bool = True) -> Pass:  # noqa: ARG002
        """Start a forward pass in training mode; the pass's z waits for the reply.

        `backward` must be true: the server computes with its own parameters only, so it cannot look ahead.
        """
        assert backward
        if self._step_begins:
            self._step, self._step_begins = self._step + 1, False
        header = SplitHeader(
            kind="embedding", round=self._round, step=self._step, part=self._part, seed=int(parameters["seed"])
        )
        request = self._send(header, (add_noise(source["e"], self._noise, self._noise_key),))
        return _RemotePass(source, header, lambda: self._await(request).arrays)

    def backward(
        self,
        done: Pass,
        dz: Representation,
        parameters: Inputs,  # noqa: ARG002
        gradients: Inputs,  # noqa: ARG002
        *,
        release: bool = False,  # noqa: ARG002
    ) -> Callable[[], Batch | None]:
        """Send ∂L/∂z; the result waits for ∂L/∂e. The server keeps the gradients of the encoder's parameters."""
        assert isinstance(done, _RemotePass)
        request = self._send(msgspec.structs.replace(done.header, kind="gradient", seed=0), dz)
        return lambda: self._await(request).arrays[0]

    def predict(self, source: Inputs, parameters: Inputs) -> Representation:  # noqa: ARG002
        """Return the representation in evaluation mode, computed in parts of a batch at most."""
        e, most = add_noise(source["e"], self._noise, self._noise_key), self._layout.max_samples
        parts = []
        for start in range(0, len(e), most):
            self._probes = (self._probes + 1) % FIRST_PROBE
            number = FIRST_PROBE + self._probes
            header = SplitHeader(kind="probe", round=self._round, step=self._step + 1, part=number)
            parts.append(self._request(header, (e[start : start + most],)).arrays)
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def mark_checkpoint(self) -> None:
        """Have the server save the state after all steps so far, which are in a checkpoint of the device."""
        self._request(SplitHeader(kind="mark", round=self._round, step=self._step + 1))

    def finish_round(self) -> None:
        """Have the server store what this device has trained, and end its session."""
        self._request(SplitHeader(kind="finish", round=self._round, step=self._step + 1))

    def _request(self, header: SplitHeader, arrays: tuple[Batch, ...] = ()) -> SplitMessage:
        return self._await(self._send(header, arrays))

    def _send(self, header: SplitHeader, arrays: tuple[Batch, ...] = ()) -> "_Request":
        """Send a request without waiting for its reply."""
        if arrays:
            header = msgspec.structs.replace(header, samples=len(arrays[0]), precision=self._precision)
        try:
            data = encode(SplitMessage(header=header, arrays=arrays))
        except MessageInvalid as exc:
            raise EncoderServerUnavailable(str(exc)) from exc
        self._channel.send(data)
        now_s = self._clock()
        request = _Request(header, data, now_s, now_s)
        self._open.append(request)
        return request

    def _await(self, request: "_Request") -> SplitMessage:
        """Return the reply to a request. Meanwhile all open requests are sent again when it is time."""
        while request.reply is None:
            now_s = self._clock()
            if now_s - request.first_sent_s >= self._deadline_s:
                raise EncoderServerUnavailable(f"the encoder server has sent no reply for {self._deadline_s:.0f} s")
            unanswered = [each for each in self._open if each.reply is None]
            for each in unanswered:
                if now_s - each.sent_s >= self._resend_s:
                    self._channel.send(each.data)
                    each.sent_s = now_s
            data = self._channel.receive(max(0.0, min(each.sent_s for each in unanswered) + self._resend_s - now_s))
            if data is not None:
                self._on_message(data)
        self._open.remove(request)
        return request.reply

    def _on_message(self, data: bytes) -> None:
        """Take a reply; other messages are passed over. Raises EncoderServerUnavailable for a refusal."""
        try:
            message = decode(self._layout, data)
        except MessageInvalid:
            return
        header = message.header
        if header.round != self._round:
            return
        for request in self._open:
            if request.is_refused(header):
                is_lost = header.reason in {"step", "unknown", "timeout"}
                error, asked = (EncoderSessionLost if is_lost else EncoderServerUnavailable), request.header
                raise error(f"the encoder server refused {asked.kind} of step {asked.step}: {header.detail}")
            if request.is_answered(message):
                request.reply = message


@dataclass(eq=False)
class _Request:
    """A request to the encoder server, when it was sent first and last, and its reply."""

    header: SplitHeader
    data: bytes
    first_sent_s: float
    sent_s: float
    reply: SplitMessage | None = None

    def is_refused(self, header: SplitHeader) -> bool:
        """Return True if a header refuses this request, or all of the device. 'full' refuses for now only."""
        if self.reply is not None or header.kind != "refused":
            return False
        asked = self.header
        is_it = (header.about, header.step, header.part) == (asked.kind, asked.step, asked.part)
        return header.reason in {"timeout", "invalid"} or (is_it and header.reason != "full")

    def is_answered(self, message: SplitMessage) -> bool:
        """Return True if a message is the reply to this request."""
        header, asked = message.header, self.header
        is_it = (header.kind, header.step, header.part) == (REPLIES[asked.kind], asked.step, asked.part)
        return is_it and header.samples == (asked.samples if message.arrays else 0)


class _RemotePass(Pass):
    """A forward pass at the encoder server, whose representation may still be on its way."""

    def __init__(self, source: Inputs, header: SplitHeader, wait: Callable[[], Representation]) -> None:
        super().__init__(source, 0)
        self.header = header
        self._wait = wait
        self._z: Representation | None = None

    @property
    def z(self) -> Representation:
        """The representation; waits if it has not come. Raises EncoderServerUnavailable."""
        if self._z is None:
            self._z = self._wait()
        return self._z


def check_settings(settings: Training) -> None:
    """Raise EncoderServerUnavailable for settings that split learning does not have."""
    if settings.probe_every and settings.probe != "representation":
        raise EncoderServerUnavailable(
            f"the probe {settings.probe!r} needs the encoder on the device: in split learning use 'representation'"
        )
