"""The rounds of a federation as a state machine without I/O or clock.

Rules
- Everything that happens comes in as a method with the time, `now_s`; everything to be done goes out as a list of
  actions, to be done in that order. `Record` comes before the `Send` of its acknowledgement: journal, then say so.
- One round is open at a time. A round begins when enough devices are online, with a seeded sample of those that
  have labels of one of its tasks. One that nobody can measure is refused by all, and so closes.
- A member's state changes by the table `TRANSITIONS` alone. What the table does not have is counted in `counts`,
  declined where the device waits for an answer, and changes nothing.
- A round closes when every member has answered, a refusal being an answer, or at the deadline; either way only with
  a quorum of results. Without one the deadline is extended: members that are online go on, the others are replaced
  by fresh draws. An evaluation that every member refused closes with nothing.
- A device's result of a round counts once. One that comes late is declined and counted.

A member of a round:

    asked ──announce──► fetching ──receive──► counted
      │                    ├──reject──► rejected
      ├──evaluate──────────┼──────────► counted
      └──refuse────────────┴──────────► refused
"""

# coverage: every branch

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from broker_server.rounds.actions import Abandon, Action, Close, FetchUpdate, Note, Opened, Record, Result, Send, Work
from broker_server.rounds.validation import evaluation_fault, update_fault
from edge_runtime.wire.messages import Ack, Evaluation, Finished, Hello, Plan, Progress, Refusal, Update

State = Literal["asked", "fetching", "counted", "refused", "rejected"]
Step = Literal["announce", "receive", "reject", "evaluate", "refuse"]

TRANSITIONS: Mapping[tuple[State, Step], State] = {
    ("asked", "announce"): "fetching",
    ("asked", "evaluate"): "counted",
    ("asked", "refuse"): "refused",
    ("fetching", "announce"): "fetching",  # the device started again, perhaps with other weights
    ("fetching", "receive"): "counted",
    ("fetching", "reject"): "rejected",
    ("fetching", "refuse"): "refused",
}
UNANSWERED: frozenset[State] = frozenset({"asked", "fetching"})
PATIENCE_S = 3.0
"""A device that is online and has not said Hello for so long takes part all the same: it said so to an earlier
process, or while the server was away."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How many devices a round takes and how long it waits."""

    min_devices: int = 2
    """A round begins when so many are online."""
    clients_per_round: int = 0
    """How many are drawn for a round of training; 0 for all that are online."""
    quorum: int = 0
    """Results that a round needs; 0 for half of its members, rounded up."""
    deadline_s: float = 600.0
    seed: int = 0


@dataclass
class Device:
    """What is known of a device."""

    online: bool = False
    ready: bool = False
    """Whether it may be asked to work: since its Hello, or PATIENCE_S after it came online without one."""
    came_s: float = 0.0
    hello: Hello | None = None
    progress: Progress | None = None


@dataclass
class OpenRound:
    """The round that is going on. Before it has members it waits for enough devices."""

    work: Work
    members: dict[str, State] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    quorum: int = 0
    deadline_s: float = math.inf
    draws: int = 0


class Coordinator:
    """Who does what in which round. See the module's rules."""

    def __init__(self, rules: Rules, hellos: Mapping[str, Hello] | None = None) -> None:
        self._rules = rules
        self.devices: dict[str, Device] = {name: Device(hello=hello) for name, hello in (hellos or {}).items()}
        self.counts: Counter[str] = Counter()
        """What was dropped or declined, by reason."""
        self.open: OpenRound | None = None
        self._last: tuple[int, frozenset[str]] = (-1, frozenset())
        self._finished: str | None = None

    @property
    def online(self) -> list[str]:
        """The devices that may be asked to work, in order."""
        return sorted(name for name, device in self.devices.items() if device.ready)

    def offer(
        self,
        work: Work,
        now_s: float,
        *,
        members: tuple[str, ...] = (),
        quorum: int = 0,
        results: Mapping[str, Result] | None = None,
    ) -> list[Action]:
        """Begin a round, or with `members`, `quorum` and `results` go on with one that an earlier process began."""
        counted = dict(results or {})
        self.open = OpenRound(
            work=work,
            members={name: "counted" if name in counted else "asked" for name in members},
            results=counted,
            quorum=quorum,
            draws=len(members),
        )
        if members:
            self.open.deadline_s = now_s + self._rules.deadline_s
        return self._advance(now_s)

    def finish(self, detail: str) -> list[Action]:
        """The federation has ended: tell everybody, now and when they come."""
        self.open = None
        self._finished = detail
        return [Send(device=name, message=Finished(detail=detail)) for name in self.online]

    def status(self, device: str, *, online: bool, now_s: float) -> list[Action]:
        """A device's status changed."""
        known = self.devices.setdefault(device, Device())
        if online and not known.online:
            known.came_s = now_s
        known.online = online
        known.ready = known.ready and online
        return self._advance(now_s)

    def hello(self, device: str, hello: Hello, now_s: float) -> list[Action]:
        """A device is there: new, back again, or started again."""
        known = self.devices.setdefault(device, Device())
        known.hello, known.progress = hello, None
        return self._welcome(device, now_s) + self._advance(now_s)

    @property
    def needed(self) -> int:
        """How many devices must be online for a round to begin."""
        return max(self._rules.min_devices, self._rules.quorum, 1)

    def is_asked(self, device: str) -> bool:
        """Whether a device is in the open round and has not answered."""
        return self.open is not None and self.open.members.get(device) in UNANSWERED

    def progress(self, device: str, progress: Progress) -> None:
        """How far a device is; for people who watch."""
        if self.is_asked(device) and progress.round == self._round.work.assignment.round:
            self.devices.setdefault(device, Device()).progress = progress
        else:
            self.counts["progress of another round"] += 1

    def refusal(self, device: str, refusal: Refusal, now_s: float) -> list[Action]:
        """A device does not do the round."""
        if self._foreign(device, refusal) or not self._step(device, "refuse"):
            self.counts["refusal of another round"] += 1
            return []
        self.counts[f"refused: {refusal.reason}"] += 1
        said = f"{device} refuses round {refusal.round}: {refusal.reason}, {refusal.detail}"
        return [Abandon(device=device), Note(text=said), *self._advance(now_s)]

    def update(self, device: str, update: Update, now_s: float) -> list[Action]:
        """A device announces its weights."""
        if declined := self._decline(device, update, "train"):
            return declined
        known = self.devices.get(device)
        fault = update_fault(self._round.work, update, known.hello if known else None)
        self._step(device, "announce")
        if fault:
            self._step(device, "reject")
            self.counts["update rejected"] += 1
            note = Note(text=f"{device}'s update was rejected: {fault}")
            return [Abandon(device=device), self._ack(device, update, fault), note, *self._advance(now_s)]
        self._round.results[device] = update
        return [FetchUpdate(device=device, update=update)]

    def received(self, device: str, now_s: float) -> list[Action]:
        """The announced weights of a device are here, whole and valid."""
        update = self._fetched(device, "receive")
        return [Record(device=device, result=update), self._ack(device, update), *self._advance(now_s)]

    def rejected(self, device: str, why: str, now_s: float) -> list[Action]:
        """The announced weights of a device cannot be used."""
        update = self._fetched(device, "reject")
        self.counts["update rejected"] += 1
        note = Note(text=f"{device}'s update was rejected: {why}")
        return [self._ack(device, update, why), note, *self._advance(now_s)]

    def evaluation(self, device: str, evaluation: Evaluation, now_s: float) -> list[Action]:
        """A device has measured losses."""
        if declined := self._decline(device, evaluation, "evaluate"):
            return declined
        if fault := evaluation_fault(self._round.work, evaluation):
            self._round.members[device] = "rejected"
            self.counts["evaluation rejected"] += 1
            return [self._ack(device, evaluation, fault), *self._advance(now_s)]
        self._step(device, "evaluate")
        self._round.results[device] = evaluation
        return [Record(device=device, result=evaluation), self._ack(device, evaluation), *self._advance(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for name, device in sorted(self.devices.items()):
            if device.online and not device.ready and now_s - device.came_s >= PATIENCE_S:
                actions += self._welcome(name, now_s)
        return actions + self._advance(now_s)

    def _welcome(self, device: str, now_s: float) -> list[Action]:
        """A device may be asked to work from now on: say what it has missed."""
        self.devices[device].online = self.devices[device].ready = True
        if self._finished is not None:
            return [Send(device=device, message=Finished(detail=self._finished))]
        return [self._plan(device, now_s)] if self.is_asked(device) else []

    # The round's own course
    def _advance(self, now_s: float) -> list[Action]:
        """Begin, close or extend the open round if it is time."""
        current = self.open
        if current is None:
            return []
        if not current.members:
            return self._begin(current, now_s)
        counted = self._counted(current)
        answered = UNANSWERED.isdisjoint(current.members.values())
        enough = len(counted) >= current.quorum
        nothing_to_measure = current.work.assignment.work == "evaluate" and answered
        if (enough and (answered or now_s >= current.deadline_s)) or nothing_to_measure:
            return self._close(current, counted)
        if now_s >= current.deadline_s:
            return self._extend(current, now_s, counted)
        return self._replace(current, now_s) if answered else []

    def _begin(self, current: OpenRound, now_s: float) -> list[Action]:
        able = self._able(current)
        if len(self.online) < self.needed or not able:
            return []
        is_measured = current.work.assignment.work == "evaluate"
        drawn = self._draw(current, able, (not is_measured and self._rules.clients_per_round) or len(able))
        current.members = dict.fromkeys(drawn, "asked")
        current.quorum = min(self._rules.quorum or math.ceil(len(drawn) / 2), len(drawn))
        current.draws = len(drawn)
        current.deadline_s = now_s + self._rules.deadline_s
        return [self._opened(current), *(self._plan(name, now_s) for name in drawn)]

    def _close(self, current: OpenRound, counted: tuple[str, ...]) -> list[Action]:
        number = current.work.assignment.round
        self._last = (number, frozenset(counted))
        self.open = None
        fetching = [name for name, state in sorted(current.members.items()) if state == "fetching"]
        late = sum(state in UNANSWERED for state in current.members.values())
        notes = [Note(text=f"round {number} closes at its deadline without {late} of its members")] if late else []
        return [*(Abandon(device=name) for name in fetching), *notes, Close(round=number, devices=counted)]

    def _extend(self, current: OpenRound, now_s: float, counted: tuple[str, ...]) -> list[Action]:
        """The deadline has passed without a quorum: those online go on, others are replaced, refusers asked again."""
        gone = [
            name
            for name, state in current.members.items()
            if state in {"refused", "rejected"} or (state in UNANSWERED and not self._is_online(name))
        ]
        going_on = [name for name, state in sorted(current.members.items()) if state in UNANSWERED and name not in gone]
        for name in gone:
            current.members.pop(name)
            current.results.pop(name, None)
        fresh = [name for name in self._able(current) if name not in current.members]
        drawn = self._draw(current, fresh, current.draws - len(current.members))
        # With nobody left to ask, those that are away stay members: they are asked when they come.
        for name in gone[: 0 if current.members or drawn else None]:
            current.members[name] = "asked"
        current.members.update(dict.fromkeys(drawn, "asked"))
        current.deadline_s = now_s + self._rules.deadline_s
        said = (
            f"round {current.work.assignment.round} has {len(counted)} of the {current.quorum} results that it needs: "
            f"waiting another {self._rules.deadline_s:g} s, {len(going_on)} still at work, {len(drawn)} drawn anew"
        )
        abandoned = [Abandon(device=name) for name in gone]
        plans = [self._plan(name, now_s) for name in sorted({*going_on, *drawn}) if current.members[name] == "asked"]
        return [*abandoned, Note(text=said), self._opened(current), *plans]

    def _replace(self, current: OpenRound, now_s: float) -> list[Action]:
        """All have answered, too many with a refusal: draw others that were not asked yet, if there are any."""
        fresh = [name for name in self._able(current) if name not in current.members]
        drawn = self._draw(current, fresh, current.quorum - len(self._counted(current)))
        if not drawn:
            return []
        current.members.update(dict.fromkeys(drawn, "asked"))
        return [self._opened(current), *(self._plan(name, now_s) for name in drawn)]

    def _able(self, current: OpenRound) -> list[str]:
        """Those online with labels of one of the tasks, or that have not said; to measure, all where there are none."""
        about = current.work.assignment
        said = [(name, self.devices[name].hello) for name in self.online]
        able = [name for name, hello in said if hello is None or not set(about.tasks).isdisjoint(hello.tasks)]
        return able if able or about.work == "train" else self.online

    def _draw(self, current: OpenRound, names: list[str], number: int) -> list[str]:
        """A sample by the seed, the group's round and what it has drawn before; the same with every strategy."""
        about = current.work.assignment
        token = f"{self._rules.seed}/{about.group}/{about.index}/{sorted(current.members)}"
        return sorted(random.Random(token).sample(names, max(0, min(number, len(names)))))  # noqa: S311

    def _plan(self, device: str, now_s: float) -> Send:
        current = self._round
        work, about = current.work, current.work.assignment
        return Send(
            device=device,
            message=Plan(
                work=about.work,
                round=about.round,
                phase=about.phase,
                group=about.group,
                tasks=about.tasks,
                bundle=work.bundle,
                signature=work.signature,
                weights=work.weights,
                training=work.training,
                updates=work.updates,
                split_learning=work.apart,
                local_stem=work.own_stem,
                data_split=about.data_split,
                deadline_s=max(1.0, current.deadline_s - now_s),
            ),
        )

    @property
    def _round(self) -> OpenRound:
        if self.open is None:
            raise ValueError("no round is open")
        return self.open

    def _is_online(self, device: str) -> bool:
        return device in self.devices and self.devices[device].online

    @staticmethod
    def _counted(current: OpenRound) -> tuple[str, ...]:
        return tuple(sorted(name for name, state in current.members.items() if state == "counted"))

    @staticmethod
    def _opened(current: OpenRound) -> Opened:
        return Opened(
            round=current.work.assignment.round, members=tuple(sorted(current.members)), quorum=current.quorum
        )

    def _step(self, device: str, step: Step) -> bool:
        """Change a member's state if the table allows it."""
        members = self._round.members
        after = TRANSITIONS.get((members[device], step))
        if after is None:
            return False
        members[device] = after
        return True

    def _fetched(self, device: str, step: Step) -> Result:
        if device not in self._round.members or not self._step(device, step):
            raise ValueError(f"nothing was being fetched from {device}")
        return self._round.results[device]

    def _foreign(self, device: str, message: Result | Refusal) -> bool:
        """Whether a message is not about the open round, or not from one of its members."""
        if self.open is None or device not in self.open.members:
            return True
        about = self.open.work.assignment
        return (message.round, message.group) != (about.round, about.group)

    def _decline(self, device: str, result: Result, work: str) -> list[Action]:
        """The answer to a result that cannot count; empty if it can."""
        number, counted = self._last
        if result.round == number and device in counted:
            self.counts["result repeated"] += 1
            return [self._ack(device, result)]
        if self._foreign(device, result) or self._round.work.assignment.work != work:
            current = self.open.work.assignment.round if self.open else number
            late = result.round < current or (self.open is None and result.round == current)
            self.counts["result late" if late else "result not asked for"] += 1
            why = f"round {result.round} is closed" if late else "this was not asked of this device"
            return [self._ack(device, result, why)]
        state = self._round.members[device]
        if state == "counted":
            self.counts["result repeated"] += 1
            return [self._ack(device, result)]
        if state not in UNANSWERED:
            self.counts["result after a refusal"] += 1
            return [self._ack(device, result, f"this device's part in round {result.round} is over: {state}")]
        return []

    @staticmethod
    def _ack(device: str, result: Result, fault: str | None = None) -> Send:
        ack = Ack(round=result.round, group=result.group, accepted=fault is None, detail=(fault or "")[:500])
        return Send(device=device, message=ack)
