"""What the coordinator works on, and what it wants done: actions, each carried out in the order given."""

from dataclasses import dataclass

from broker_server.strategies.planner import Assignment
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.messages import Evaluation, ServerMessage, SplitLearning, Training, Update

Result = Update | Evaluation
"""What a device makes of a round."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A round to be done: what it is about and what its plan carries."""

    assignment: Assignment
    bundle: Blob
    signature: str
    weights: Blob
    """What devices are given."""
    whole: Blob
    """The group's weights in full: the same, unless the encoder is computed by a host."""
    training: Training | None
    updates: Updates
    apart: SplitLearning | None = None
    """How the encoder is computed by a host; None where devices have it."""
    own_stem: bool = False
    """Whether devices keep their stems to themselves."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A round has begun, or has other members now: journal them."""

    round: int
    members: tuple[str, ...]
    quorum: int


@dataclass(frozen=True, kw_only=True)
class Send:
    """Say this to a device."""

    device: str
    message: ServerMessage


@dataclass(frozen=True, kw_only=True)
class FetchUpdate:
    """Ask a device for the weights that it announced; answer with `received` or `rejected`."""

    device: str
    update: Update


@dataclass(frozen=True, kw_only=True)
class Abandon:
    """Stop fetching from a device."""

    device: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """Journal a device's result: the round counts it from now on."""

    device: str
    result: Result


@dataclass(frozen=True, kw_only=True)
class Close:
    """The round has what it needs: fold the results of these devices, then offer the next round."""

    round: int
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that people who watch should read."""

    text: str


Action = Opened | Send | FetchUpdate | Abandon | Record | Close | Note
