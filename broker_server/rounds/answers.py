"""Whether a device's answer is one that the open round takes, without I/O or clock."""

# coverage: every branch

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker_server.rounds.round_state import UNANSWERED, OpenRound, Result
from edge_runtime.wire.messages import Refusal


@dataclass(frozen=True, kw_only=True)
class Declined:
    """An answer that is not taken: the reason it is counted by, and the fault; None if it has counted before."""

    reason: str
    fault: str | None = None


@dataclass
class Answered:
    """The answers that have counted so far: of each device the round that its last one began from."""

    newest: int = -1
    """The round that closed last."""
    rounds: dict[str, int] = field(default_factory=dict)

    def note(self, results: Mapping[str, Result]) -> None:
        """Note results that count."""
        self.rounds.update({device: result.round for device, result in results.items()})

    def declined(self, current: OpenRound | None, device: str, result: Result, work: str) -> Declined | None:
        """Return why a result is not taken; None if it is."""
        if self.rounds.get(device) == result.round:
            return Declined(reason="result repeated")
        if current is None or is_foreign(current, device, result) or current.plan.work != work:
            newest = self.newest if current is None else current.plan.round - 1
            if result.round <= newest:
                return Declined(reason="result late", fault=f"round {result.round} is closed")
            return Declined(reason="result not asked for", fault="this was not asked of this device")
        state = current.members[device]
        if state not in UNANSWERED:
            fault = f"this device's part in round {result.round} is over: {state}"
            return Declined(reason="result after a refusal", fault=fault)
        return None


def is_foreign(current: OpenRound | None, device: str, message: Result | Refusal) -> bool:
    """Return whether a message is not about what a member of the open round was asked for."""
    if current is None or device not in current.members:
        return True
    plan = current.plan_of(device)
    return (message.round, message.group) != (plan.round, plan.group)
