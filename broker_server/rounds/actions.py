"""The coordinator's actions, carried out in the order given."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker_server.rounds.answer_times import Learnt
from broker_server.rounds.round_state import OpenRound, Result
from broker_server.strategies.planner import Round
from edge_runtime.wire.messages import ServerMessage, Update


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A round has begun, or has other members now: journal them.

    `asked` are members of a buffered round that are sent shares of its own plan now: others may have an earlier one.
    """

    round: Round
    members: tuple[str, ...]
    quorum: int
    asked: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Send:
    """Send a message to a device."""

    device: str
    message: ServerMessage


@dataclass(frozen=True, kw_only=True)
class FetchUpdate:
    """Ask a device for the weights that it announced; answer with `on_update_received` or `on_update_rejected`."""

    device: str
    update: Update


@dataclass(frozen=True, kw_only=True)
class Abandon:
    """Stop fetching from a device."""

    device: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """Journal a device's result: round number `round` counts it from now on, whichever it began from."""

    round: int
    device: str
    result: Result


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Journal how long devices took to answer, for later processes."""

    learnt: Learnt


@dataclass(frozen=True, kw_only=True)
class Close:
    """The round has what it needs: fold the results that count, then offer the next round. Always the last action."""

    closed: OpenRound


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that people who watch should read."""

    text: str


Action = Opened | Send | FetchUpdate | Abandon | Record | Learned | Close | Note
