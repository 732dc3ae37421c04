"""The host's side of split training for one device in one round, as a state machine: no I/O, no clock, no engine.

Rules
- Every input returns the actions that the caller must take, in their order. One computation at a time: the next is
  asked for when the one before has been `computed`.
- A step is the present one until a message belongs to the next, and then, with all its parts returned, it is applied:
  so a gradient counts once, however often it comes. The backward passes of a step run in the order of its parts,
  whatever the order in which their gradients came: the sum is the same bit for bit.
- A beginning has a number of its own: a device that begins anew draws another, so one that comes late changes nothing.
- What comes again is answered again: z until its gradient has come, ∂L/∂e until the next step begins.
- A message that cannot be served is refused with a reason and changes nothing.
- At most `most_parts` parts are on their way, each with one embedding or gradient and one answer; the answers of as
  many that have been returned are still there.
- The caller runs Compute, ApplyStep, SaveState, RestoreState and FinishSession one after the other, in their order.
- A device that is silent for `idle_s` has left: what it did in the round is dropped.

Of a part:   embedding → FORWARD → (z) WAITING → gradient → QUEUED → BACKWARD → (∂L/∂e) RETURNED
"""

# coverage: every branch

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from edge_runtime.wire.messages import Precision
from edge_runtime.wire.split_learning import Batch, RefusalReason, SplitHeader, SplitMessage

Arrays = tuple[Batch, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Compute:
    """Run this; answer with `computed`. A forward pass keeps what the backward pass of its part needs."""

    kind: Literal["forward", "backward", "predict"]
    step: int
    part: int
    arrays: Arrays
    seed: int = 0
    turn: int = 0
    """Counts the device's beginnings: what was asked for before the last of them has no use."""


@dataclass(frozen=True, kw_only=True)
class ApplyStep:
    """Take the optimizer's step with the gradients since the last."""


@dataclass(frozen=True, kw_only=True)
class SaveState:
    """Remember weights and optimizer's state as those of a step; one step is remembered, besides the first."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RestoreState:
    """Weights and optimizer's state are those remembered of a step (0: of the round's beginning) again.

    With None they stay, and only the gradients since the last step are dropped.
    """

    step: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """Say this to the device."""

    message: SplitMessage


@dataclass(frozen=True, kw_only=True)
class DropSession:
    """The device takes no part any more: free all that is held for it."""

    detail: str


@dataclass(frozen=True, kw_only=True)
class FinishSession:
    """The device has done its round: put away what it has taught, and free the rest."""


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
    answer: SplitMessage | None = None


@dataclass
class _Book:
    """The present step: its number, its parts, the next part to go back; `turn` counts the device's beginnings."""

    step: int = 0
    turn: int = 0
    parts: dict[int, _Part] = field(default_factory=dict)
    next_back: int = 0

    @property
    def complete(self) -> bool:
        return all(part.state is _State.RETURNED for part in self.parts.values())


class EncoderSession:
    """One device's place at the host in one round."""

    def __init__(
        self,
        round_number: int,
        now_s: float,
        *,
        most_parts: int = 8,
        idle_s: float = 120.0,
        precision: Precision = "fp32",
    ) -> None:
        """`precision` is how the host's arrays travel."""
        self._round = round_number
        self._most_parts = most_parts
        self._idle_s = idle_s
        self._precision: Precision = precision
        self._heard_s = now_s
        self._book = _Book()
        self._kept: int | None = None
        self._begun: int | None = None
        self._queue: deque[Compute] = deque()
        self._running: Compute | None = None
        self._ended: Literal["finished", "left"] | None = None

    @property
    def step(self) -> int:
        """The present step: so many have been applied."""
        return self._book.step

    @property
    def ended(self) -> Literal["finished", "left"] | None:
        """Whether the device has done its round, or has left it; None while it is at work."""
        return self._ended

    def is_begun_by(self, header: SplitHeader) -> bool:
        """Whether a beginning is the one that the device made last, which comes again."""
        return header.seed == self._begun

    @property
    def held(self) -> int:
        """How many arrays, or groups of them, are held: of parts, answers and what waits to be computed."""
        parts = self._book.parts.values()
        return sum((part.gradient is not None) + (part.answer is not None) for part in parts) + len(self._queue)

    def received(self, message: SplitMessage, now_s: float) -> list[Action]:
        """The device said something."""
        header = message.header
        if self._ended == "left":
            return [self._refuse(header, "timeout", f"round {self._round} goes on without this device")]
        self._heard_s = now_s
        if header.round != self._round:
            return [self._refuse(header, "round", f"the round is {self._round}")]
        serve = {
            "begin": self._on_begin,
            "embedding": self._on_embedding,
            "probe": self._on_probe,
            "gradient": self._on_gradient,
            "mark": self._on_mark,
            "finish": self._on_finish,
        }
        if header.kind not in serve:
            return [self._refuse(header, "invalid", f"a device does not say {header.kind}")]
        if self._ended == "finished" and header.kind != "finish":
            return [self._refuse(header, "step", "the device has finished its round")]
        return serve[header.kind](message)

    def computed(self, arrays: Arrays, now_s: float) -> list[Action]:
        """The computation that was asked for last has given this."""
        done, self._running = self._running, None
        assert done is not None
        self._heard_s = max(self._heard_s, now_s)  # the device was waiting for us
        actions: list[Action] = []
        if done.kind == "predict":
            actions.append(self._answer("representation", done, arrays))
        elif self._ended is None and done.turn == self._book.turn:
            part = self._book.parts[done.part]
            if done.kind == "forward":
                part.state = _State.WAITING
                actions.append(self._answered(part, "representation", done, arrays))
            else:
                part.state = _State.RETURNED
                self._book.next_back += 1
                if (old := self._book.parts.get(done.part - self._most_parts)) is not None:
                    old.answer = None
                actions += [self._answered(part, "return", done, arrays), *self._go_back()]
        return actions + self._next()

    def failed(self, detail: str) -> list[Action]:
        """The computation that was asked for last cannot be done: the device's round is over."""
        self._running = None
        return self._leave(detail)

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        if self._ended is not None or self._running is not None or now_s - self._heard_s < self._idle_s:
            return []
        return self._leave(f"the device was silent for {self._idle_s:.0f} s")

    def _on_begin(self, message: SplitMessage) -> list[Action]:
        header = message.header
        if self.is_begun_by(header):
            return [self._say(header, "ready")]
        actions = self._move_to(header)
        if header.step == self._book.step:
            back = None
        elif header.step in {0, self._kept}:
            back = header.step
        else:
            known = "0" if self._kept is None else f"0 or {self._kept}"
            return [self._refuse(header, "step", f"begin at {known}, or at {self._book.step} to go on")]
        if self._book.parts or back is not None:
            actions.append(RestoreState(step=back))
        self._book = _Book(step=header.step, turn=self._book.turn + 1)
        self._queue.clear()
        self._begun = header.seed
        return [*actions, self._say(header, "ready")]

    def _on_embedding(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._book.step:
            return [self._refuse(header, "step", self._present)]
        part = self._book.parts.get(header.part)
        if part is not None:
            return [Reply(message=part.answer)] if part.state is _State.WAITING and part.answer else []
        if len(self._book.parts) - self._book.next_back >= self._most_parts:
            return [self._refuse(header, "full", f"{self._most_parts} parts are on their way, which is the most")]
        self._book.parts[header.part] = _Part()
        return actions + self._ask("forward", header, message.arrays)

    def _on_probe(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._book.step:
            return [self._refuse(header, "step", self._present)]
        if len(self._queue) >= 2 * self._most_parts:
            return [*actions, self._refuse(header, "full", "too much is waiting to be computed")]
        return actions + self._ask("predict", header, message.arrays)

    def _on_gradient(self, message: SplitMessage) -> list[Action]:
        header = message.header
        part = self._book.parts.get(header.part) if header.step == self._book.step else None
        if part is None or part.state is _State.FORWARD:
            return [self._refuse(header, "unknown", f"part {header.part} of step {header.step} has no forward pass")]
        if part.state is _State.RETURNED:
            if part.answer is None:
                return [self._refuse(header, "unknown", f"part {header.part} was returned long ago")]
            return [Reply(message=part.answer)]
        if part.state is _State.WAITING:
            part.state, part.gradient, part.answer = _State.QUEUED, message.arrays, None
            return self._go_back()
        return []

    def _on_mark(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._book.step or self._book.parts:
            return [self._refuse(header, "step", self._present)]
        if header.step not in {0, self._kept}:
            self._kept = header.step
            actions.append(SaveState(step=header.step))
        return [*actions, self._say(header, "marked")]

    def _on_finish(self, message: SplitMessage) -> list[Action]:
        header = message.header
        actions = self._move_to(header)
        if header.step != self._book.step or self._book.parts:
            return [self._refuse(header, "step", self._present)]
        if self._ended is None:
            self._ended = "finished"
            actions.append(FinishSession())
        return [*actions, self._say(header, "finished")]

    def _move_to(self, header: SplitHeader) -> list[Action]:
        """Apply the present step if the message belongs to the next and nothing of the present one is left to do."""
        if header.step != self._book.step + 1 or not self._book.parts or not self._book.complete:
            return []
        self._book = _Book(step=header.step, turn=self._book.turn)
        return [ApplyStep()]

    def _go_back(self) -> list[Action]:
        part = self._book.parts.get(self._book.next_back)
        if part is None or part.state is not _State.QUEUED:
            return []
        assert part.gradient is not None
        part.state, gradient, part.gradient = _State.BACKWARD, part.gradient, None
        about = SplitHeader(kind="gradient", round=self._round, step=self._book.step, part=self._book.next_back)
        return self._ask("backward", about, gradient)

    def _ask(self, kind: Literal["forward", "backward", "predict"], about: SplitHeader, arrays: Arrays) -> list[Action]:
        turn = self._book.turn
        self._queue.append(
            Compute(kind=kind, step=about.step, part=about.part, arrays=arrays, seed=about.seed, turn=turn)
        )
        return self._next()

    def _next(self) -> list[Action]:
        if self._running is not None or not self._queue:
            return []
        self._running = self._queue.popleft()
        return [self._running]

    def _leave(self, detail: str) -> list[Action]:
        self._ended = "left"
        self._book = _Book(step=self._book.step, turn=self._book.turn + 1)
        self._queue.clear()
        return [DropSession(detail=detail)]

    @property
    def _present(self) -> str:
        left = sum(part.state is not _State.RETURNED for part in self._book.parts.values())
        return f"step {self._book.step} is the present one, with {left} parts to be returned"

    def _answered(self, part: _Part, kind: Literal["representation", "return"], done: Compute, arrays: Arrays) -> Reply:
        answer = self._answer(kind, done, arrays)
        part.answer = answer.message
        return answer

    def _answer(self, kind: Literal["representation", "return"], done: Compute, arrays: Arrays) -> Reply:
        header = SplitHeader(
            kind=kind,
            round=self._round,
            step=done.step,
            part=done.part,
            samples=len(arrays[0]),
            precision=self._precision,
        )
        return Reply(message=SplitMessage(header=header, arrays=arrays))

    def _say(self, header: SplitHeader, kind: Literal["ready", "marked", "finished"]) -> Reply:
        return Reply(message=SplitMessage(header=SplitHeader(kind=kind, round=self._round, step=header.step)))

    def _refuse(self, header: SplitHeader, why: RefusalReason, detail: str) -> Reply:
        refusal = SplitHeader(
            kind="refused",
            round=header.round,
            step=header.step,
            part=header.part,
            about=header.kind,
            reason=why,
            detail=detail,
        )
        return Reply(message=SplitMessage(header=refusal))
