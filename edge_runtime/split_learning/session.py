"""The encoder server's session with one device in one round, as a state machine: no I/O, no clock, no engine.

Rules
- Every input returns the actions that the caller must take, in their order. There is one computation at a time: the
  next is requested after `on_computed` for the one before.
- A step is current until a message belongs to the next one. Then, if all its parts have been returned, it is applied:
  a gradient counts once, however often it comes. The backward passes of a step run in the order of its parts, whatever
  the order of their gradients: the sum is the same bit for bit.
- Each `begin` has an identity. A device that begins again draws another, so a late copy of the old one changes nothing.
- A repeated request gets its reply again: z until its gradient has come, ∂L/∂e until the next step begins.
- A message that cannot be served is refused with a reason and changes nothing.
- At most `max_parts` parts are on their way, each with one embedding or gradient and one reply. The replies of as many
  returned parts are kept.
- The caller runs Compute, ApplyStep, SaveState, RestoreState and FinishSession one after the other, in their order.
- A device that is silent for `idle_s` has left: its work in the round is dropped.

Of a part:   embedding → FORWARD → (z) WAITING → gradient → QUEUED → BACKWARD → (∂L/∂e) RETURNED
"""

# coverage: every branch

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from edge_runtime.wire.messages import Precision
from edge_runtime.wire.split_learning import Batch, RefusalReason, SplitHeader, SplitMessage, refusal

Arrays = tuple[Batch, ...]
Computation = Literal["forward", "backward", "predict"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Compute:
    """Run this, then call `on_computed`. A forward pass saves what the backward pass of its part needs."""

    kind: Computation
    step: int
    part: int
    arrays: Arrays
    seed: int = 0
    begins: int = 0
    """The count of `begin` messages before it: results from before the last `begin` are dropped."""


@dataclass(frozen=True, kw_only=True)
class ApplyStep:
    """Take the optimizer's step with the gradients since the last one."""


@dataclass(frozen=True, kw_only=True)
class SaveState:
    """Save weights and optimizer's state as those of a step. One step is saved, besides the first."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RestoreState:
    """Restore weights and optimizer's state of the saved step, or of the round's beginning (0).

    With None they stay, and only the gradients since the last step are dropped.
    """

    step: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """Send this to the device."""

    message: SplitMessage


@dataclass(frozen=True, kw_only=True)
class DropSession:
    """Free all that is held for the device, which takes no part any more."""

    detail: str


@dataclass(frozen=True, kw_only=True)
class FinishSession:
    """Store what the device has trained, and free the rest: its round is done."""


Action = Compute | ApplyStep | SaveState | RestoreState | Reply | DropSession | FinishSession


class _State(Enum):
    FORWARD = auto()
    WAITING = auto()
    QUEUED = auto()
    BACKWARD = auto()
    RETURNED = auto()


@dataclass(eq=False)
class _Part:
    state: _State = _State.FORWARD
    gradient: Arrays | None = None
    reply: SplitMessage | None = None


@dataclass
class _Step:
    """The current step: its parts, and the next of them for the backward pass. `begins` counts the `begin` messages."""

    number: int = 0
    begins: int = 0
    parts: dict[int, _Part] = field(default_factory=dict)
    next_backward: int = 0

    @property
    def is_complete(self) -> bool:
        return all(part.state is _State.RETURNED for part in self.parts.values())


class EncoderSession:
    """The state of one device at the encoder server in one round."""

    def __init__(
        self,
        round_number: int,
        now_s: float,
        *,
        max_parts: int = 8,
        idle_s: float = 120.0,
        precision: Precision = "fp32",
    ) -> None:
        """`precision` is the encoding of the arrays in replies."""
        self._round = round_number
        self._max_parts = max_parts
        self._idle_s = idle_s
        self._precision: Precision = precision
        self._last_message_s = now_s
        self._step = _Step()
        self._saved_step: int | None = None
        self._begin_seed: int | None = None
        self._queue: deque[Compute] = deque()
        self._running: Compute | None = None
        self._ended: Literal["finished", "left"] | None = None

    @property
    def step(self) -> int:
        """The number of the current step, which is how many have been applied."""
        return self._step.number

    @property
    def ended(self) -> Literal["finished", "left"] | None:
        """The way in which the session ended; None while the device is at work."""
        return self._ended

    def is_begun_by(self, header: SplitHeader) -> bool:
        """Return True for a copy of the device's last `begin`."""
        return header.seed == self._begin_seed

    @property
    def held_arrays(self) -> int:
        """The number of array groups held: gradients of parts, replies, and inputs of computations that wait."""
        parts = self._step.parts.values()
        return sum((part.gradient is not None) + (part.reply is not None) for part in parts) + len(self._queue)

    def on_message(self, message: SplitMessage, now_s: float) -> list[Action]:
        """Handle a message of the device; return the actions to take."""
        header = message.header
        if self._ended == "left":
            return [self._refuse(header, "timeout", f"round {self._round} goes on without this device")]
        self._last_message_s = now_s
        if header.round != self._round:
            return [self._refuse(header, "round", f"the round is {self._round}")]
        handlers = {
            "begin": self._on_begin,
            "embedding": self._on_embedding,
            "probe": self._on_probe,
            "gradient": self._on_gradient,
            "mark": self._on_mark,
            "finish": self._on_finish,
        }
        if header.kind not in handlers:
            return [self._refuse(header, "invalid", f"a device does not send messages of kind {header.kind}")]
        if self._ended == "finished" and header.kind != "finish":
            return [self._refuse(header, "step", "the device has finished its round")]
        return handlers[header.kind](message)

    def on_computed(self, arrays: Arrays, now_s: float) -> list[Action]:
        """Take the result of the computation that was requested last; return the actions to take."""
        done, self._running = self._running, None
        assert done is not None
        self._last_message_s = max(self._last_message_s, now_s)  # meanwhile the device was waiting
        actions: list[Action] = []
        if done.kind == "predict":
            actions.append(self._reply("representation", done, arrays))
        elif self._ended is None and done.begins == self._step.begins:
            part = self._step.parts[done.part]
            if done.kind == "forward":
                part.state = _State.WAITING
                actions.append(self._reply("representation", done, arrays, part))
            else:
                part.state = _State.RETURNED
                self._step.next_backward += 1
                if (old := self._step.parts.get(done.part - self._max_parts)) is not None:
                    old.reply = None
                actions += [self._reply("return", done, arrays, part), *self._start_backward()]
        return actions + self._next()

    def on_failed(self, detail: str) -> list[Action]:
        """End the session: the computation that was requested last has failed."""
        self._running = None
        return self._leave(detail)

    def on_tick(self, now_s: float) -> list[Action]:
        """End the session if the device has been silent for too long."""
        if self._ended is not None or self._running is not None or now_s - self._last_message_s < self._idle_s:
            return []
        return self._leave(f"the device was silent for {self._idle_s:.0f} s")

    def _on_begin(self, message: SplitMessage) -> list[Action]:
        header = message.header
        if self.is_begun_by(header):
            return [self._acknowledge(header, "ready")]
        actions = self._move_to(header)
        if header.step == self._step.number:
            restored = None
        elif header.step in {0, self._saved_step}:
            restored = header.step
        else:
            known = "0" if self._saved_step is None else f"0 or {self._saved_step}"
            return [self._refuse(header, "step", f"begin at {known}, or at {self._step.number} to go on")]
        if self._step.parts or restored is not None:
            actions.append(RestoreState(step=restored))
        self._step = _Step(number=header.step, begins=self._step.begins + 1)
        self._queue.clear()
        self._begin_seed = header.seed
        return [*actions, self._acknowledge(header, "ready")]

    def _on_embedding(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._step.number:
            return [self._refuse(header, "step", self._current_step)]
        part = self._step.parts.get(header.part)
        if part is not None:
            return [Reply(message=part.reply)] if part.state is _State.WAITING and part.reply else []
        if len(self._step.parts) - self._step.next_backward >= self._max_parts:
            return [self._refuse(header, "full", f"{self._max_parts} parts are on their way, which is the most")]
        self._step.parts[header.part] = _Part()
        return actions + self._request("forward", header, message.arrays)

    def _on_probe(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._step.number:
            return [self._refuse(header, "step", self._current_step)]
        if len(self._queue) >= 2 * self._max_parts:
            return [*actions, self._refuse(header, "full", "too much is waiting to be computed")]
        return actions + self._request("predict", header, message.arrays)

    def _on_gradient(self, message: SplitMessage) -> list[Action]:
        header = message.header
        part = self._step.parts.get(header.part) if header.step == self._step.number else None
        if part is None or part.state is _State.FORWARD:
            return [self._refuse(header, "unknown", f"part {header.part} of step {header.step} has no forward pass")]
        if part.state is _State.RETURNED:
            if part.reply is None:
                return [self._refuse(header, "unknown", f"the reply for part {header.part} is not kept any more")]
            return [Reply(message=part.reply)]
        if part.state is _State.WAITING:
            part.state, part.gradient, part.reply = _State.QUEUED, message.arrays, None
            return self._start_backward()
        return []

    def _on_mark(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._step.number or self._step.parts:
            return [self._refuse(header, "step", self._current_step)]
        if header.step not in {0, self._saved_step}:
            self._saved_step = header.step
            actions.append(SaveState(step=header.step))
        return [*actions, self._acknowledge(header, "marked")]

    def _on_finish(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._step.number or self._step.parts:
            return [self._refuse(header, "step", self._current_step)]
        if self._ended is None:
            self._ended = "finished"
            actions.append(FinishSession())
        return [*actions, self._acknowledge(header, "finished")]

    def _move_to(self, header: SplitHeader) -> list[Action]:
        """Apply the current step if the message belongs to the next one and all parts have been returned."""
        if header.step != self._step.number + 1 or not self._step.parts or not self._step.is_complete:
            return []
        self._step = _Step(number=header.step, begins=self._step.begins)
        return [ApplyStep()]

    def _start_backward(self) -> list[Action]:
        part = self._step.parts.get(self._step.next_backward)
        if part is None or part.state is not _State.QUEUED:
            return []
        assert part.gradient is not None
        part.state, gradient, part.gradient = _State.BACKWARD, part.gradient, None
        about = SplitHeader(kind="gradient", round=self._round, step=self._step.number, part=self._step.next_backward)
        return self._request("backward", about, gradient)

    def _request(self, kind: Computation, about: SplitHeader, arrays: Arrays) -> list[Action]:
        begins = self._step.begins
        self._queue.append(
            Compute(kind=kind, step=about.step, part=about.part, arrays=arrays, seed=about.seed, begins=begins)
        )
        return self._next()

    def _next(self) -> list[Action]:
        if self._running is not None or not self._queue:
            return []
        self._running = self._queue.popleft()
        return [self._running]

    def _leave(self, detail: str) -> list[Action]:
        self._ended = "left"
        self._step = _Step(number=self._step.number, begins=self._step.begins + 1)
        self._queue.clear()
        return [DropSession(detail=detail)]

    @property
    def _current_step(self) -> str:
        left = sum(part.state is not _State.RETURNED for part in self._step.parts.values())
        return f"step {self._step.number} is the current one, with {left} parts to be returned"

    def _reply(
        self, kind: Literal["representation", "return"], done: Compute, arrays: Arrays, part: _Part | None = None
    ) -> Reply:
        """Return the reply with a result; `part` keeps it, to send it again."""
        header = SplitHeader(
            kind=kind,
            round=self._round,
            step=done.step,
            part=done.part,
            samples=len(arrays[0]),
            precision=self._precision,
        )
        message = SplitMessage(header=header, arrays=arrays)
        if part is not None:
            part.reply = message
        return Reply(message=message)

    def _acknowledge(self, header: SplitHeader, kind: Literal["ready", "marked", "finished"]) -> Reply:
        return Reply(message=SplitMessage(header=SplitHeader(kind=kind, round=self._round, step=header.step)))

    @staticmethod
    def _refuse(header: SplitHeader, reason: RefusalReason, detail: str) -> Reply:
        return Reply(message=refusal(header, reason, detail))
