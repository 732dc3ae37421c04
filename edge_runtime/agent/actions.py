"""The actions that a session asks its caller to take, in the order in which it returns them."""

from dataclasses import dataclass

from edge_runtime.agent.state import Pending
from edge_runtime.wire.blob import Blob, ChunkRun
from edge_runtime.wire.messages import Ack, DeviceMessage, Plan, Status


@dataclass(frozen=True)
class SendMessage:
    """Publish a message to the server; a Status is retained."""

    message: DeviceMessage | Status


@dataclass(frozen=True)
class StopFetching:
    """Take no more of this blob."""

    digest: str


@dataclass(frozen=True)
class CheckFiles:
    """Look up which files of the plan are missing: answer with `on_files_checked` or `on_files_refused`."""

    plan: Plan


@dataclass(frozen=True)
class StartWork:
    """Start the work on a plan, all of whose files are here.

    Answer with `on_work_done`, `on_work_failed` or `on_work_stopped`, once.
    """

    plan: Plan


@dataclass(frozen=True)
class CancelWork:
    """Stop the work, whose result is no longer wanted, and answer as StartWork asks."""


@dataclass(frozen=True)
class StopWork:
    """End the training after its present step: what was done is the result, answered as StartWork asks."""


@dataclass(frozen=True)
class SaveResult:
    """Make the finished result survive a power cut before it is announced."""

    pending: Pending


@dataclass(frozen=True)
class DropResult:
    """Drop the saved result: it need not be announced again after a restart."""


@dataclass(frozen=True)
class SendRuns:
    """Send these runs of the update, behind those that wait."""

    blob: Blob
    runs: tuple[ChunkRun, ...]


@dataclass(frozen=True)
class SendMarker:
    """Send an empty run of this number, behind the runs that wait."""

    digest: str
    number: int


@dataclass(frozen=True)
class ClosePlan:
    """Close the plan, whose result the server has accepted or dropped."""

    ack: Ack


@dataclass(frozen=True)
class Exit:
    """End the agent: the federation has ended."""

    detail: str


Action = (
    SendMessage
    | StopFetching
    | CheckFiles
    | StartWork
    | CancelWork
    | StopWork
    | SaveResult
    | DropResult
    | SendRuns
    | SendMarker
    | ClosePlan
    | Exit
)
