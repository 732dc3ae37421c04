"""The round that is going on: its members and their states, the results that it has, and the bytes that it took.

When it begins, closes or is extended is the coordinator's: coordinator.py.

A member of a round:

    asked ──announce──► fetching ──receive──► counted
      │                    ├──reject──► rejected
      ├──evaluate──────────┼──────────► counted
      ├──refuse────────────┼──────────► refused
      └──fail──────────────┴──────────► rejected

In a buffered round a member whose result counts may be asked again, for work on newer weights than that began from.
"""

# coverage: every branch

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from broker_server.strategies.planner import Round
from edge_runtime.wire.messages import Evaluation, Plan, Update

Result = Update | Evaluation
"""A device's result of a round."""
MemberState = Literal["asked", "fetching", "counted", "refused", "rejected"]
Step = Literal["announce", "receive", "reject", "evaluate", "refuse", "fail", "ask"]

TRANSITIONS: Mapping[tuple[MemberState, Step], MemberState] = {
    ("asked", "announce"): "fetching",
    ("asked", "evaluate"): "counted",
    ("asked", "refuse"): "refused",
    ("asked", "fail"): "rejected",
    ("fetching", "announce"): "fetching",  # the device started again, perhaps with other weights
    ("fetching", "receive"): "counted",
    ("fetching", "reject"): "rejected",
    ("fetching", "refuse"): "refused",
    ("fetching", "fail"): "rejected",
    ("counted", "ask"): "asked",
}
UNANSWERED: frozenset[MemberState] = frozenset({"asked", "fetching"})


def lighter(plan: Plan, share: float) -> Plan:
    """Return a plan of training that asks for a share of its work."""
    training = None if plan.training is None else msgspec.structs.replace(plan.training, share=share)
    return msgspec.structs.replace(plan, training=training)


@dataclass(kw_only=True)
class RoundTraffic:
    """Bytes of a round on the wire; None where not all of them were counted, because an earlier process began it.

    `down_bytes` are those beyond what devices report to have downloaded.
    """

    up_bytes: int | None = 0
    down_bytes: int | None = 0

    def add(self, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """Count bytes that devices have sent and received."""
        if self.up_bytes is not None:
            self.up_bytes += up_bytes
        if self.down_bytes is not None:
            self.down_bytes += down_bytes


@dataclass(kw_only=True)
class OpenRound:
    """The round that is going on. Before it has members it waits for enough devices."""

    round: Round
    plan: Plan
    """As at the round's begin: `deadline_s` is what a device has that is asked at once."""
    own_plans: Mapping[str, Plan] = field(default_factory=dict)
    """In its place, for devices that have weights of their own."""
    members: dict[str, MemberState] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    """What members were asked for, where it is not the round's own plan: one of an earlier version, or less work."""
    announced: dict[str, Update] = field(default_factory=dict)
    """Updates that are being fetched, or are for the next round because their device has a result in this one."""
    results: dict[str, Result] = field(default_factory=dict)
    """The results that count: one of a device at most."""
    has_begun: bool = False
    quorum: int = 0
    enough: int = 0
    """So many results close the round, whoever else is at work; 0 where all are waited for."""
    deadline_s: float = math.inf
    stop_s: float = math.inf
    """When those at work whose results are too old for the next round are told to send what they have done."""
    stopped: set[str] = field(default_factory=set)
    """Those who were told so."""
    since_s: float = 0.0
    """When it began, or this process went on with it."""
    asked_s: dict[str, float] = field(default_factory=dict)
    """When each member that this process has drawn was asked first: an earlier one's may have worked long before."""
    took_s: dict[str, float] = field(default_factory=dict)
    """How long each took to answer."""
    draws: int = 0
    traffic: RoundTraffic = field(default_factory=RoundTraffic)
    is_portable: bool = False
    """True where the group has no ONNX Runtime training artifacts: devices that need them are left out."""

    @property
    def counted(self) -> tuple[str, ...]:
        """The devices whose results count, in order."""
        return tuple(sorted(self.results))

    @property
    def has_quorum(self) -> bool:
        """Return whether enough results are here for the round to close."""
        return len(self.results) >= self.quorum

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The members whose answers are still to come, in order."""
        return tuple(sorted(name for name, state in self.members.items() if state in UNANSWERED))

    @property
    def asked(self) -> tuple[str, ...]:
        """The members at work, in order."""
        return tuple(sorted(name for name, state in self.members.items() if state == "asked"))

    @property
    def fetching(self) -> tuple[str, ...]:
        """The members whose updates are on their way, in order."""
        return tuple(sorted(name for name, state in self.members.items() if state == "fetching"))

    def plan_of(self, device: str) -> Plan:
        """Return what a member was asked for last."""
        return self.plans.get(device) or self.own_plans.get(device, self.plan)

    def is_free(self, device: str) -> bool:
        """Return whether a device could be asked: it was not yet, or what counts of it began from older weights."""
        state = self.members.get(device)
        return state is None or (state == "counted" and self.results[device].round < self.round.number)

    def draw(self, devices: Mapping[str, float], now_s: float) -> None:
        """Take devices in as members, which are asked for these shares of the round's own plan now."""
        for device, share in devices.items():
            if device in self.members:
                self.step(device, "ask")
                self.plans.pop(device, None)
                self.asked_s[device] = now_s
            self.members.setdefault(device, "asked")
            self.asked_s.setdefault(device, now_s)
            if share < 1:
                self.plans[device] = lighter(self.plan, share)

    def leave(self, device: str) -> None:
        """Let go of a member that does not answer; a result of it that counts stays."""
        self.plans.pop(device, None)
        self.announced.pop(device, None)
        if device in self.results:
            self.members[device] = "counted"
        else:
            self.members.pop(device)

    def take_over(self, before: "OpenRound", max_age: int) -> None:
        """Take over the members at work in the group's round before, whose results may still count in this one."""
        if (before.round.phase, before.round.group) != (self.round.phase, self.round.group):
            return
        for device in before.unanswered:
            plan = before.plan_of(device)
            if self.round.number - plan.round > max_age:
                continue
            self.members[device], self.plans[device] = before.members[device], plan
            if device in before.asked_s:
                self.asked_s[device] = before.asked_s[device]
            if device in before.announced:
                self.announced[device] = before.announced[device]

    def step(self, device: str, step: Step) -> bool:
        """Change a member's state if the table allows it; return whether it does."""
        after = TRANSITIONS.get((self.members[device], step))
        if after is not None:
            self.members[device] = after
        return after is not None
