"""The encoder of a device that does not have it: what goes in and comes out crosses to the host of the general model.

It stands in the place of the encoder (edge_runtime.training.encoder), so the trainer trains as ever, with parameters of
stem and heads alone. A question is sent again until its answer comes or the deadline has passed; the host answers the
same question alike, so nothing is done twice.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from edge_runtime.training.encoder import Batch, Inputs, Pass, Representation
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Precision, Training
from edge_runtime.wire.split_learning import (
    MAX_PARTS,
    MessageKind,
    MessageLayout,
    SplitHeader,
    SplitMessage,
    decode,
    encode,
)

FIRST_PROBE = MAX_PARTS // 2
"""Probes count through the upper half of the parts: an answer to one is never taken for another's, or for a batch's."""
ANSWERS: dict[str, MessageKind] = {
    "begin": "ready",
    "embedding": "representation",
    "probe": "representation",
    "gradient": "return",
    "mark": "marked",
    "finish": "finished",
}


class EncoderServerUnavailable(RuntimeError):
    """The host did not answer in time, or refused: this device cannot go on with the round."""


class EncoderSessionLost(EncoderServerUnavailable):
    """The host has nothing of what this device did in the round: begin it anew."""


class MessageChannel(Protocol):
    """A seam: how messages get to the host and back, which may lose, repeat and reorder them."""

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        ...

    def receive(self, timeout_s: float) -> bytes | None:
        """What has come, or None if nothing does in that time."""
        ...


class RemoteEncoder:
    """The encoder of a bundle with a stem, computed by the host, for one round.

    `batch` is the most samples that a message has. With `ahead`, so many parts of a step are on their way at once: then
    the link and both processors have something to do. A question is asked again after `again_s`, and given up after
    `deadline_s`.
    """

    def __init__(
        self,
        manifest: Manifest,
        channel: MessageChannel,
        round_number: int,
        batch: int,
        *,
        precision: Precision = "fp32",
        again_s: float = 5.0,
        deadline_s: float = 300.0,
        ahead: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = MessageLayout.of(manifest, batch)
        self._channel, self._clock = channel, clock
        self._round = round_number
        self._precision: Precision = precision
        self._again_s, self._deadline_s, self._ahead = again_s, deadline_s, ahead
        self._open: list[_Question] = []
        self._step, self._part, self._fresh = -1, 0, True
        self._probes = 0

    def begin(self, step: int = 0) -> None:
        """Begin with an optimizer's step: 0 at the beginning of a round, else one that was marked.

        Raises EncoderServerUnavailable, and EncoderSessionLost if the server has nothing of the step.
        """
        self._step, self._part, self._fresh = step - 1, 0, True
        which = 2**61 + secrets.randbits(61)  # always as many digits, so that the same round has as many bytes again
        self._ask(SplitHeader(kind="begin", round=self._round, step=step, seed=which))

    def at(self, *place: int) -> None:
        """The batch of a place: a step begins with its first part."""
        self._part = place[3] if len(place) > 3 else 0
        self._fresh = self._part == 0

    @property
    def ahead(self) -> int:
        """How many passes may be on their way at once."""
        return self._ahead

    def forward(self, given: Inputs, inputs: Inputs, following: Inputs, *, backward: bool = True) -> Pass:  # noqa: ARG002
        """The host's forward pass in training mode. It has no other parameters than its own: `backward` is true.

        The embedding is on its way when this returns; whoever asks the pass for z waits for it.
        """
        assert backward
        if self._fresh:
            self._step, self._fresh = self._step + 1, False
        header = SplitHeader(
            kind="embedding", round=self._round, step=self._step, part=self._part, seed=int(inputs["seed"])
        )
        question = self._post(header, (given["e"],))
        return _RemotePass(given, header, lambda: self._await(question).arrays)

    def backward(
        self,
        done: Pass,
        dz: Representation,
        inputs: Inputs,  # noqa: ARG002
        gradients: Inputs,  # noqa: ARG002
        *,
        release: bool = False,  # noqa: ARG002
    ) -> Callable[[], Batch | None]:
        """∂L/∂e from the host, which keeps the gradients of its parameters, for whoever asks and waits."""
        assert isinstance(done, _RemotePass)
        question = self._post(msgspec.structs.replace(done.header, kind="gradient", seed=0), dz)
        return lambda: self._await(question).arrays[0]

    def predict(self, given: Inputs, inputs: Inputs) -> Representation:  # noqa: ARG002
        """The host's representation in evaluation mode, in pieces of a batch at most."""
        e, most = given["e"], self._layout.most
        pieces = []
        for start in range(0, len(e), most):
            self._probes = (self._probes + 1) % FIRST_PROBE
            part = FIRST_PROBE + self._probes
            header = SplitHeader(kind="probe", round=self._round, step=self._step + 1, part=part)
            pieces.append(self._ask(header, (e[start : start + most],)).arrays)
        return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))

    def mark(self) -> None:
        """All steps so far are in a checkpoint: the host remembers them too."""
        self._ask(SplitHeader(kind="mark", round=self._round, step=self._step + 1))

    def finish(self) -> None:
        """The device has done its round."""
        self._ask(SplitHeader(kind="finish", round=self._round, step=self._step + 1))

    def _ask(self, header: SplitHeader, arrays: tuple[Batch, ...] = ()) -> SplitMessage:
        return self._await(self._post(header, arrays))

    def _post(self, header: SplitHeader, arrays: tuple[Batch, ...] = ()) -> "_Question":
        """Ask without waiting."""
        if arrays:
            header = msgspec.structs.replace(header, samples=len(arrays[0]), precision=self._precision)
        try:
            data = encode(SplitMessage(header=header, arrays=arrays))
        except MessageInvalid as exc:
            raise EncoderServerUnavailable(str(exc)) from exc
        self._channel.send(data)
        now_s = self._clock()
        question = _Question(header, data, now_s, now_s)
        self._open.append(question)
        return question

    def _await(self, question: "_Question") -> SplitMessage:
        """The answer to a question. Meanwhile all that are open are asked again when it is time."""
        while question.answer is None:
            now_s = self._clock()
            if now_s - question.posed_s >= self._deadline_s:
                raise EncoderServerUnavailable(
                    f"the host of the general model did not answer for {self._deadline_s:.0f} s"
                )
            unanswered = [each for each in self._open if each.answer is None]
            for each in unanswered:
                if now_s - each.sent_s >= self._again_s:
                    self._channel.send(each.data)
                    each.sent_s = now_s
            came = self._channel.receive(max(0.0, min(each.sent_s for each in unanswered) + self._again_s - now_s))
            if came is not None:
                self._take(came)
        self._open.remove(question)
        return question.answer

    def _take(self, data: bytes) -> None:
        """A message came: perhaps an answer. Raises EncoderServerUnavailable for a refusal."""
        try:
            message = decode(self._layout, data)
        except MessageInvalid:
            return
        header = message.header
        if header.round != self._round:
            return
        for question in self._open:
            if question.is_refused(header):
                forgot = header.reason in {"step", "unknown", "timeout"}
                kind, asked = (EncoderSessionLost if forgot else EncoderServerUnavailable), question.header
                raise kind(f"the host refused {asked.kind} of step {asked.step}: {header.detail}")
            if question.is_answered(message):
                question.answer = message


@dataclass(eq=False)
class _Question:
    """What the host was asked, when first and when last, and its answer."""

    header: SplitHeader
    data: bytes
    posed_s: float
    sent_s: float
    answer: SplitMessage | None = None

    def is_refused(self, header: SplitHeader) -> bool:
        """Whether this refuses it: by its name, or all that a device says. A host that is full is asked again."""
        if self.answer is not None or header.kind != "refused":
            return False
        asked = self.header
        is_it = (header.about, header.step, header.part) == (asked.kind, asked.step, asked.part)
        return header.reason in {"timeout", "invalid"} or (is_it and header.reason != "full")

    def is_answered(self, message: SplitMessage) -> bool:
        """Whether this answers it."""
        header, asked = message.header, self.header
        is_it = (header.kind, header.step, header.part) == (ANSWERS[asked.kind], asked.step, asked.part)
        return is_it and header.samples == (asked.samples if message.arrays else 0)


class _RemotePass(Pass):
    """A forward pass at the host, whose representation is still on its way."""

    def __init__(self, given: Inputs, header: SplitHeader, arrive: Callable[[], Representation]) -> None:
        super().__init__(given, 0)
        self.header = header
        self._arrive = arrive
        self._z: Representation | None = None

    @property
    def z(self) -> Representation:
        """The representation, waited for if it has not come. Raises EncoderServerUnavailable."""
        if self._z is None:
            self._z = self._arrive()
        return self._z


def check_settings(settings: Training) -> None:
    """Raises EncoderServerUnavailable for what split training does not do."""
    if settings.probe_every and settings.probe != "representation":
        raise EncoderServerUnavailable(
            f"affinities are probed by {settings.probe!r}, which needs the encoder: with a general model on a host "
            "'representation' alone can be"
        )
