"""The encoder of a device that does not have it: what goes in and comes out crosses to the host of the general model.

It stands in the place of the encoder (edge_runtime.training.encoder), so the trainer trains as ever, with parameters of
stem and heads alone. A question is sent again until its answer comes or the deadline has passed; the host answers the
same question alike, so nothing is done twice.
"""

import secrets
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from edge_runtime.training.encoder import Batch, Inputs, Pass, Representation
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.exchange import MAX_PARTS, Header, Kind, Layout, Message, decode, encode
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Precision, Training

FIRST_PROBE = MAX_PARTS // 2
"""Probes count through the upper half of the parts: an answer to one is never taken for another's, or for a batch's."""
ANSWERS: dict[str, Kind] = {
    "begin": "ready",
    "embedding": "representation",
    "probe": "representation",
    "gradient": "return",
    "mark": "marked",
    "finish": "finished",
}


class HostUnavailable(RuntimeError):
    """The host did not answer in time, or refused: this device cannot go on with the round."""


class HostForgot(HostUnavailable):
    """The host has nothing of what this device did in the round: begin it anew."""


class Channel(Protocol):
    """A seam: how messages get to the host and back, which may lose, repeat and reorder them."""

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        ...

    def receive(self, timeout_s: float) -> bytes | None:
        """What has come, or None if nothing does in that time."""
        ...


class RemoteEncoder:
    """The encoder of a bundle with a stem, computed by the host, for one round.

    `batch` is the most that a message has. A question is asked again after `again_s`, and given up after `deadline_s`.
    """

    def __init__(
        self,
        manifest: Manifest,
        channel: Channel,
        round_number: int,
        batch: int,
        *,
        precision: Precision = "fp32",
        again_s: float = 5.0,
        deadline_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = Layout.of(manifest, batch)
        self._channel, self._clock = channel, clock
        self._round = round_number
        self._precision: Precision = precision
        self._again_s, self._deadline_s = again_s, deadline_s
        self._step, self._part, self._fresh = -1, 0, True
        self._probes = 0

    def begin(self, step: int = 0) -> None:
        """Begin with an optimizer's step: of a round's beginning 0, else one that was marked. Raises HostUnavailable.

        HostForgot if the host knows nothing of the step.
        """
        self._step, self._part, self._fresh = step - 1, 0, True
        self._ask(Header(kind="begin", round=self._round, step=step, seed=secrets.randbits(62)))

    def at(self, *place: int) -> None:
        """The batch of a place: a step begins with its first part."""
        self._part = place[3] if len(place) > 3 else 0
        self._fresh = self._part == 0

    def forward(self, given: Inputs, inputs: Inputs, following: Inputs, *, backward: bool = True) -> Pass:  # noqa: ARG002
        """The host's forward pass in training mode. It has no other parameters than its own: `backward` is true."""
        assert backward
        if self._fresh:
            self._step, self._fresh = self._step + 1, False
        answer = self._ask(self._header("embedding", int(inputs["seed"])), (given["e"],))
        z = {f"z.{i}": array for i, array in enumerate(answer.arrays)}
        done = Pass(given, len(z))
        done.values |= z
        return done

    def backward(
        self,
        done: Pass,  # noqa: ARG002  (a seam's signature)
        dz: Representation,
        inputs: Inputs,  # noqa: ARG002
        gradients: Inputs,  # noqa: ARG002
        *,
        release: bool = False,  # noqa: ARG002
    ) -> Batch | None:
        """∂L/∂e from the host, which keeps the gradients of its parameters."""
        (de,) = self._ask(self._header("gradient"), dz).arrays
        return de

    def predict(self, given: Inputs, inputs: Inputs) -> Representation:  # noqa: ARG002
        """The host's representation in evaluation mode, in pieces of a batch at most."""
        e, most = given["e"], self._layout.most
        pieces = []
        for start in range(0, len(e), most):
            self._probes = (self._probes + 1) % FIRST_PROBE
            part = FIRST_PROBE + self._probes
            header = Header(kind="probe", round=self._round, step=self._step + 1, part=part)
            pieces.append(self._ask(header, (e[start : start + most],)).arrays)
        return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))

    def mark(self) -> None:
        """All steps so far are in a checkpoint: the host remembers them too."""
        self._ask(Header(kind="mark", round=self._round, step=self._step + 1))

    def finish(self) -> None:
        """The device has done its round."""
        self._ask(Header(kind="finish", round=self._round, step=self._step + 1))

    def _header(self, kind: Kind, seed: int = 0) -> Header:
        return Header(kind=kind, round=self._round, step=self._step, part=self._part, seed=seed)

    def _ask(self, header: Header, arrays: tuple[Batch, ...] = ()) -> Message:
        if arrays:
            header = msgspec.structs.replace(header, samples=len(arrays[0]), precision=self._precision)
        try:
            data = encode(Message(header=header, arrays=arrays))
        except MessageInvalid as exc:
            raise HostUnavailable(str(exc)) from exc
        start = self._clock()
        while self._clock() - start < self._deadline_s:
            self._channel.send(data)
            sent = self._clock()
            while (left := sent + self._again_s - self._clock()) > 0 and (came := self._channel.receive(left)):
                if (answer := self._answer(header, came)) is not None:
                    return answer
        raise HostUnavailable(f"the host of the general model did not answer for {self._deadline_s:.0f} s")

    def _answer(self, asked: Header, data: bytes) -> Message | None:
        """The answer in a message; None for what answers something else. Raises HostUnavailable for a refusal."""
        try:
            message = decode(self._layout, data)
        except MessageInvalid:
            return None
        header = message.header
        if header.round != asked.round:
            return None
        if header.kind == "refused":
            is_it = (header.about, header.step, header.part) == (asked.kind, asked.step, asked.part)
            if header.reason in {"timeout", "invalid"} or (is_it and header.reason != "full"):
                forgot = header.reason in {"step", "unknown", "timeout"}
                kind = HostForgot if forgot else HostUnavailable
                raise kind(f"the host refused {asked.kind} of step {asked.step}: {header.detail}")
            return None
        is_it = (header.kind, header.step, header.part) == (ANSWERS[asked.kind], asked.step, asked.part)
        if is_it and header.samples == (asked.samples if message.arrays else 0):
            return message
        return None


def check_settings(settings: Training) -> None:
    """Raises HostUnavailable for what split training does not do."""
    if settings.probe_every and settings.probe != "representation":
        raise HostUnavailable(
            f"affinities are probed by {settings.probe!r}, which needs the encoder: with a general model on a host "
            "'representation' alone can be"
        )
