"""What a session asks its caller to do, in the order in which it asks."""

from dataclasses import dataclass

from edge_runtime.agent.state import Pending
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.messages import Ack, DeviceMessage, Plan, Status


@dataclass(frozen=True)
class Say:
    """Publish this; a Status is retained."""

    message: DeviceMessage | Status


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to the chunks of this blob, now or when the link is up, and again after each reconnect."""

    digest: str


@dataclass(frozen=True)
class Unsubscribe:
    """The chunks of this blob are no longer wanted."""

    digest: str


@dataclass(frozen=True)
class Fetch:
    """Look what this plan still needs: answer with `wanted`, or with `refused`."""

    plan: Plan


@dataclass(frozen=True)
class StartWork:
    """Everything that the plan needs is here: begin; answer with `done`, `failed` or `stopped`, once."""

    plan: Plan


@dataclass(frozen=True)
class CancelWork:
    """The work is no longer wanted: make it stop, and answer as StartWork says."""


@dataclass(frozen=True)
class Keep:
    """Make the finished result survive a power cut before it is announced."""

    pending: Pending


@dataclass(frozen=True)
class Forget:
    """The result need not be announced again after a restart."""


@dataclass(frozen=True)
class SendChunks:
    """Send these chunks of the update."""

    blob: Blob
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """The server has taken the result, or declined it: the plan is over."""

    ack: Ack


@dataclass(frozen=True)
class Exit:
    """The federation has ended."""

    detail: str


Action = Say | Subscribe | Unsubscribe | Fetch | StartWork | CancelWork | Keep | Forget | SendChunks | Answered | Exit
