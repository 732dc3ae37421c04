"""Messages between a running server and its operator's commands: one line of JSON each way.

Rules
- A request is at most MAX_REQUEST_BYTES and matches its schema exactly; an answer is at most MAX_ANSWER_BYTES.
- A list has at most MAX_ROWS rows and states how many there are in all; `after` asks for those that follow.
- Ages and times left are in seconds, `_at_s` are seconds since the epoch. null is a figure that is not known.
"""

# coverage: every branch

from typing import Annotated, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from edge_runtime.wire.energy import Flag
from edge_runtime.wire.errors import MessageInvalid, reason
from edge_runtime.wire.messages import MAX_ROUNDS
from edge_runtime.wire.names import DeviceId

MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 16 << 20
MAX_ROWS = 1000
Most = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
Losses = dict[str, float]
T = TypeVar("T")


class _Tagged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=str.lower, tag_field="type"):
    """Base of what is sent."""


class AskStatus(_Tagged, frozen=True, kw_only=True):
    """How the federation stands."""


class AskFleet(_Tagged, frozen=True, kw_only=True):
    """The devices whose names follow `after`, in order."""

    after: Annotated[str, Meta(max_length=64)] = ""
    most: Most = MAX_ROWS


class AskRounds(_Tagged, frozen=True, kw_only=True):
    """The newest closed rounds after number `after`, in order."""

    after: Annotated[int, Meta(ge=-1, le=MAX_ROUNDS)] = -1
    most: Most = 20


class AskEvents(_Tagged, frozen=True, kw_only=True):
    """The newest notes after number `after`, in order."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    most: Most = 20


class AskAffinity(_Tagged, frozen=True, kw_only=True):
    """The affinities measured so far."""


class Act(_Tagged, frozen=True, kw_only=True):
    """Do something: `drop` names a device."""

    act: Literal["pause", "resume", "stop", "drop"]
    device: DeviceId | None = None


Request = AskStatus | AskFleet | AskRounds | AskEvents | AskAffinity | Act
FederationState = Literal[
    "no bundle", "preparing", "waiting", "training", "measuring", "paused", "finished", "failed", "not running"
]
DeviceDoing = Literal[
    "new",
    "revoked",
    "damaged",
    "offline",
    "joining",
    "idle",
    "asked",
    "working",
    "sending",
    "done",
    "refused",
    "rejected",
]


AWAY: frozenset[DeviceDoing] = frozenset({"new", "revoked", "damaged", "offline"})
"""What those do that are not there."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A member of the open round that has not answered."""

    device: str
    doing: DeviceDoing
    stage: str | None = None
    done: int | None = None
    total: int | None = None


class RoundNow(msgspec.Struct, frozen=True, kw_only=True):
    """The round that is going on, or waits for devices."""

    number: int
    phase: str
    work: Literal["train", "evaluate"]
    group: str
    index: int
    """Within its group and phase, from 0."""
    rounds: int
    """Of the group in the phase."""
    members: int
    results: int
    quorum: int
    refused: int
    rejected: int
    begun_at_s: float | None
    age_s: float | None
    deadline_in_s: float | None
    waiting_for: tuple[Waiting, ...]
    """The first few."""
    unanswered: int


class PhaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A phase that has begun."""

    name: str
    work: Literal["train", "evaluate"]
    groups: tuple[tuple[str, ...], ...]
    start: str | None
    done: int
    rounds: int
    """Rounds of all groups."""


class SplitView(msgspec.Struct, frozen=True, kw_only=True):
    """The groups that were found."""

    groups: tuple[tuple[str, ...], ...]
    score: float


class FederationView(_Tagged, frozen=True, kw_only=True, tag="status"):
    """How the federation stands. `says` is it in one sentence."""

    at_s: float
    federation: str
    version: str
    state: FederationState
    says: str
    is_paused: bool
    tasks: tuple[str, ...]
    open: RoundNow | None
    phases: tuple[PhaseView, ...]
    phase_left_s: float | None
    """Until the phase's last round closes, if rounds go on to take what the last ones took."""
    split: SplitView | None
    known: int
    online: int
    needed: int
    """Devices online before a round begins."""
    losses: Losses
    """Of each task, from the last round that had it: on validation data where there are any, else in training."""
    dropped: dict[str, int]
    """Messages that were dropped or declined, by reason, since this process began."""
    refused: dict[str, int]
    """Who or what was refused, by reason, since this process began."""


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """A device, and what its last result says of it."""

    name: str
    doing: DeviceDoing
    why: str
    """Why it is not at work, and what to do; empty where nothing is wrong."""
    stage: str | None
    done: int | None
    total: int | None
    software: str | None
    engine: str | None
    platform: str | None
    tasks: tuple[str, ...]
    examples: int | None
    """To train on."""
    memory_bytes: int | None
    round: int | None
    """The round of its last result."""
    work_s: float | None
    peak_bytes: int | None
    budget_bytes: int | None
    energy_j: float | None
    is_estimated: bool
    temperature_c: float | None
    throttled: tuple[Flag, ...] | None


class FleetView(_Tagged, frozen=True, kw_only=True, tag="fleet"):
    """Devices, in order, and how many there are of each kind in all."""

    rows: tuple[DeviceView, ...]
    total: int
    doing: dict[DeviceDoing, int]


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """A closed round. Losses are means over devices, weighted by examples; `val_loss` is before training."""

    number: int
    phase: str
    work: Literal["train", "evaluate"]
    group: str
    index: int
    rounds: int
    begun_at_s: float
    wall_s: float
    members: int
    results: int
    train_loss: Losses
    val_loss: Losses | None
    test_loss: Losses | None
    bytes_up: int | None
    bytes_down: int | None
    energy_j: float | None
    is_estimated: bool
    is_partial: bool
    """True if some of its devices have measured energy, and others not."""


class Rounds(_Tagged, frozen=True, kw_only=True):
    """Closed rounds, in order; `total` are those that the server has at hand."""

    rows: tuple[RoundView, ...]
    total: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A note of the journal."""

    number: int
    at_s: float
    text: str


class Events(_Tagged, frozen=True, kw_only=True):
    """Notes, in order."""

    rows: tuple[Event, ...]


Square = tuple[tuple[float | None, ...], ...]
"""One figure for each pair of tasks, [i][j] being i→j; null where it was not measured."""


class AffinityView(_Tagged, frozen=True, kw_only=True, tag="affinity"):
    """The affinities of the closed rounds, all (T, T)."""

    tasks: tuple[str, ...]
    values: Square
    errors: Square
    """How far each may be off (standard error)."""
    counts: tuple[tuple[int, ...], ...]
    """The probed batches behind each."""


class Done(_Tagged, frozen=True, kw_only=True):
    """What was asked for is done: one sentence."""

    says: str


class NotDone(_Tagged, frozen=True, kw_only=True, tag="refused"):
    """What was asked for is not done: one sentence that says why."""

    says: str


Answer = FederationView | FleetView | Rounds | Events | AffinityView | Done | NotDone

_REQUEST = cast("msgspec.json.Decoder[Request]", msgspec.json.Decoder(Request))
_ANSWER = cast("msgspec.json.Decoder[Answer]", msgspec.json.Decoder(Answer))


def line(message: Request | Answer) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode(message) + b"\n"


def read_request(data: bytes) -> Request:
    """Return a line's request. Raises MessageInvalid."""
    return _read(_REQUEST, data, MAX_REQUEST_BYTES)


def read_answer(data: bytes) -> Answer:
    """Return a line's answer. Raises MessageInvalid."""
    return _read(_ANSWER, data, MAX_ANSWER_BYTES)


def _read(decoder: "msgspec.json.Decoder[T]", data: bytes, most: int) -> T:
    if len(data) > most:
        raise MessageInvalid(f"a line of {len(data)} bytes is over the {most} allowed")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise MessageInvalid(f"a line is not of this version of MAS Edge: {reason(exc)}") from exc
