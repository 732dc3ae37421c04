"""The rounds of a federation as a state machine without I/O or clock.

Rules
- Everything that happens comes in as a method with the time, `now_s`; everything to be done goes out as a list of
  actions, to be done in that order. `Record` comes before the `Send` of its acknowledgement: journal, then say so.
- One round is open at a time. A round begins when enough devices are online, with a seeded sample of those that
  have labels of one of its tasks. One that nobody can measure is refused by all, and so closes.
- A member's state changes by the table `TRANSITIONS` (round_state.py) alone. What the table does not have is counted in
  `counts`, declined where the device waits for an answer, and changes nothing.
- A round closes when every member has answered, a refusal being an answer, or at the deadline; either way only with
  a quorum of results. With one, members that have been away for the grace period are not waited for; if more devices
  were drawn than are needed, the first results that are enough close it. A wait is said in one line (waits.py).
- Without a quorum the deadline is extended: members that are online go on, the others are replaced by fresh draws. An
  evaluation that every member refused closes with nothing.
- A device's result of a round counts once. One that comes late is declined and counted.
- A buffered round (rules.py) closes when its quorum, which is the size of its buffer, is full. Those still at work go
  over into the next one with the plans that they have, until these are too old; a device whose result counts goes on at
  once with the newest weights. A second result of a device waits for the next round.
"""

# coverage: every branch

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from broker_server.rounds.actions import Abandon, Action, Close, FetchUpdate, Learned, Note, Opened, Record, Send
from broker_server.rounds.answer_times import AnswerTimes, Learnt
from broker_server.rounds.answers import Answered, is_foreign
from broker_server.rounds.presence import DeviceState, Presence
from broker_server.rounds.round_state import UNANSWERED, OpenRound, Result, RoundTraffic, Step
from broker_server.rounds.rules import Rules
from broker_server.rounds.sample import Draws
from broker_server.rounds.validation import evaluation_fault, update_fault
from broker_server.rounds.waits import Waits, awaited, why_without
from broker_server.strategies.planner import Round
from edge_runtime.wire.messages import (
    Ack,
    Evaluation,
    Finished,
    Hello,
    Plan,
    Progress,
    Refusal,
    RollCall,
    Stop,
    Update,
    text,
)


class Coordinator:
    """Assigns rounds to devices and takes their answers. See the module's rules."""

    def __init__(
        self,
        rules: Rules,
        hellos: Mapping[str, Hello] | None = None,
        *,
        seed: int = 0,
        learnt: Learnt | None = None,
    ) -> None:
        self.rules = rules
        self._presence = Presence(hellos or {})
        self._answer_times = AnswerTimes(learnt)
        self._draws = Draws(seed=seed, rules=rules, presence=self._presence, answer_times=self._answer_times)
        self._waits = Waits()
        self.counts: Counter[str] = Counter()
        """Numbers of messages that were dropped or declined, by reason."""
        self.open: OpenRound | None = None
        self.is_paused = False
        """While True no round begins; the one that is open goes on to its end."""
        self._answered = Answered()
        self._before: OpenRound | None = None
        """The round that closed last, whose members may go over into the next one."""
        self._finished: str | None = None

    @property
    def devices(self) -> dict[str, DeviceState]:
        """All devices that are known, by name."""
        return self._presence.devices

    @property
    def online(self) -> list[str]:
        """The devices that may be asked to work, in order."""
        return self._presence.ready

    @property
    def needed(self) -> int:
        """The number of devices that must be online for a round to begin."""
        return max(self.rules.min_devices, self.rules.quorum, 1)

    def is_asked(self, device: str) -> bool:
        """Return whether a device is in the open round and has not answered."""
        return self.open is not None and self.open.members.get(device) in UNANSWERED

    def offer(
        self,
        planned: Round,
        plan: Plan,
        now_s: float,
        *,
        own_plans: Mapping[str, Plan] | None = None,
        members: tuple[str, ...] = (),
        quorum: int = 0,
        results: Mapping[str, Result] | None = None,
        plans: Mapping[str, Plan] | None = None,
        traffic: RoundTraffic | None = None,
        is_portable: bool = False,
    ) -> list[Action]:
        """Begin a round, or go on with one that an earlier process began, with its members, quorum and results.

        `plans` are what its members were asked for where it is not `plan`, `own_plans` those of devices that have
        weights of their own.
        """
        before, self._before = self._before, None
        self.open = current = OpenRound(
            round=planned,
            plan=plan,
            own_plans=own_plans or {},
            plans=dict(plans or {}),
            results=dict(results or {}),
            quorum=quorum,
            has_begun=bool(members),
            draws=len(members),
            traffic=traffic or RoundTraffic(),
            is_portable=is_portable,
        )
        if not members:
            return [*self._take_over(current, before), *self._advance(now_s)]
        if self._answered.newest == planned.number:  # it could not be closed
            self._answered = Answered()
        self._answered.note(current.results)
        for name in members:
            is_counted = name in current.results and current.results[name].round == current.plan_of(name).round
            current.members[name] = "counted" if is_counted else "asked"
        self._start_clock(current, now_s)
        asked = [self._send_plan(name, now_s) for name in current.unanswered if name in self.online]
        return [*asked, *self._advance(now_s)]

    def _take_over(self, current: OpenRound, before: OpenRound | None) -> list[Action]:
        """Take over those who are at work since an earlier version, and fetch what waited for this round."""
        if before is None:
            return []
        current.take_over(before, self.rules.max_age(current.plan.work))
        gone = [Abandon(device=name) for name in before.fetching if name not in current.members]
        waited = [
            name for name in current.announced if current.members[name] == "asked" and current.step(name, "announce")
        ]
        return [*gone, *(FetchUpdate(device=name, update=current.announced[name]) for name in waited)]

    def finish(self, detail: str) -> list[Action]:
        """End the federation: tell all devices that are online now, and each other one when it comes."""
        abandoned = [Abandon(device=name) for name in self._before.fetching] if self._before else []
        self.open = self._before = None
        self._finished = detail
        return [*abandoned, *(Send(device=name, message=Finished(detail=detail)) for name in self.online)]

    # What the operator wants
    def resume(self, now_s: float) -> list[Action]:
        """Let rounds begin again."""
        self.is_paused = False
        return self._advance(now_s)

    def drop(self, device: str, now_s: float) -> list[Action]:
        """Leave a device out of the rest of the open round, also where another process goes on with it.

        Raises ValueError unless the round waits for its answer.
        """
        if not self.is_asked(device):
            raise ValueError(f"no round waits for {device}")
        current = self._open
        self._fail(device, "the operator has dropped it: it is asked again in another round")
        note = Note(text=f"{device} is left out of round {current.round.number}: the operator has dropped it")
        others = tuple(sorted(name for name in current.members if name != device))
        # A round without members would begin anew, so the only one stays in the journal.
        opened = [Opened(round=current.round, members=others, quorum=current.quorum)] if others else []
        return [Abandon(device=device), note, *opened, *self._advance(now_s)]

    # What devices send
    def on_status(self, device: str, *, online: bool, now_s: float) -> list[Action]:
        """Take a device's new status."""
        self._presence.on_status(device, online=online, now_s=now_s)
        return self._advance(now_s)

    def on_heard(self, device: str, now_s: float) -> list[Action]:
        """Take any message of a device as a sign that it is there; ask it for its Hello where that was not known."""
        return [Send(device=device, message=RollCall())] if self._presence.on_heard(device, now_s) else []

    def on_hello(self, device: str, hello: Hello, now_s: float) -> list[Action]:
        """Take in a device that is new, back again, or started again, or that says that it is still there."""
        self._presence.on_hello(device, hello, now_s)
        return self._welcome(device, now_s) + self._advance(now_s)

    def on_progress(self, device: str, progress: Progress) -> None:
        """Keep a device's progress, for people who watch."""
        if self.is_asked(device) and progress.round == self._open.plan_of(device).round:
            self.devices.setdefault(device, DeviceState()).progress = progress
        else:
            self.counts["progress of another round"] += 1

    def on_refusal(self, device: str, refusal: Refusal, now_s: float) -> list[Action]:
        """Take a device's refusal of the round."""
        if is_foreign(self.open, device, refusal) or not self._open.step(device, "refuse"):
            self.counts["refusal of another round"] += 1
            return []
        self.counts[f"refused: {refusal.reason}"] += 1
        self._blame(device, f"{refusal.reason}, {refusal.detail}")
        said = f"{device} refuses round {refusal.round}: {refusal.reason}, {refusal.detail}"
        return [Abandon(device=device), Note(text=said), *self._advance(now_s)]

    def on_update(self, device: str, update: Update, now_s: float) -> list[Action]:
        """Take a device's announcement of its weights."""
        if declined := self._decline(device, update, "train"):
            return declined
        current, known = self._open, self.devices.get(device)
        fault = update_fault(current.plan_of(device), update, known.hello if known else None)
        if fault is None and device in current.results:
            current.announced[device] = update
            return []
        current.step(device, "announce")
        if fault:
            current.step(device, "reject")
            self._blame(device, fault)
            self.counts["update rejected"] += 1
            note = Note(text=f"{device}'s update was rejected: {fault}")
            return [Abandon(device=device), self._ack(device, update, fault), note, *self._advance(now_s)]
        current.announced[device] = update
        return [FetchUpdate(device=device, update=update)]

    def on_update_received(self, device: str, now_s: float) -> list[Action]:
        """Count a device's update: its announced weights are here, complete and valid."""
        return self._count(device, self._fetched(device, "receive"), now_s)

    def on_update_rejected(self, device: str, why: str, now_s: float) -> list[Action]:
        """Reject a device's update: its announced weights cannot be used."""
        update = self._fetched(device, "reject")
        self._blame(device, why)
        self.counts["update rejected"] += 1
        note = Note(text=f"{device}'s update was rejected: {why}")
        return [self._ack(device, update, why), note, *self._advance(now_s)]

    def on_fault(self, device: str, why: str, now_s: float) -> list[Action]:
        """Refuse a device for the rest of the round, because the server could not handle what it sent."""
        note = Note(text=f"{device} is left out of this round: {why}")
        if not self.is_asked(device):
            return [note]
        self._fail(device, why)
        return [Abandon(device=device), note, *self._advance(now_s)]

    def on_evaluation(self, device: str, evaluation: Evaluation, now_s: float) -> list[Action]:
        """Take the losses that a device has measured."""
        if declined := self._decline(device, evaluation, "evaluate"):
            return declined
        current = self._open
        if fault := evaluation_fault(current.plan, evaluation):
            current.members[device] = "rejected"
            self._blame(device, fault)
            self.counts["evaluation rejected"] += 1
            return [self._ack(device, evaluation, fault), *self._advance(now_s)]
        current.step(device, "evaluate")
        return self._count(device, evaluation, now_s)

    def tick(self, now_s: float) -> list[Action]:
        """Do what is due by the clock."""
        actions = [action for name in self._presence.tick(now_s) for action in self._welcome(name, now_s)]
        return actions + self._advance(now_s) + self._stop(now_s) + self._said(now_s)

    def _stop(self, now_s: float) -> list[Action]:
        """Tell those at work whose results are too old for the next round to send what they have done, once."""
        current = self.open
        if current is None or now_s < current.stop_s:
            return []
        oldest = current.round.number + 1 - self.rules.max_age("train")
        late = {name for name in current.asked if current.plan_of(name).round < oldest} - current.stopped
        current.stopped |= late
        return [self._send_stop(name) for name in sorted(late) if self._is_online(name)]

    def _said(self, now_s: float) -> list[Action]:
        """Say what the open round waits for, if that is worth a line now."""
        said = self._waits.said(
            None if self.is_paused else self.open,
            self._presence,
            needed=self.needed,
            grace_s=self.rules.grace_s,
            now_s=now_s,
        )
        return [] if said is None else [Note(text=said)]

    def _welcome(self, device: str, now_s: float) -> list[Action]:
        """Send a device, which may be asked to work from now on, what it has missed."""
        if self._finished is not None:
            return [Send(device=device, message=Finished(detail=self._finished))]
        if not self.is_asked(device):
            return []
        stop = [self._send_stop(device)] if device in self._open.stopped else []
        return [self._send_plan(device, now_s), *stop]

    # The round's own course
    def _advance(self, now_s: float) -> list[Action]:
        """Begin, close or extend the open round if it is time."""
        current = self.open
        if current is None:
            return []
        if not current.has_begun:
            return self._begin(current, now_s)
        has_answers = not awaited(current, self._presence, self.rules.grace_s, now_s)
        has_enough = 0 < current.enough <= len(current.results)
        nothing_to_measure = current.plan.work == "evaluate" and not current.unanswered
        if (current.has_quorum and (has_answers or has_enough or now_s >= current.deadline_s)) or nothing_to_measure:
            return self._close(current, now_s)
        if now_s >= current.deadline_s:
            return self._extend(current, now_s)
        if self.rules.is_buffered(current.plan.work):
            return self._go_on(current, now_s, has_answers=has_answers)
        return self._replace(current, now_s) if has_answers else []

    def _go_on(self, current: OpenRound, now_s: float, *, has_answers: bool) -> list[Action]:
        """Ask those that are free; close with half of the buffer where there are none and nobody is at work."""
        drawn = [] if self.is_paused else self._draws.free(current)
        if has_answers and not drawn and 0 < len(current.results) >= current.quorum / 2:
            return self._close(current, now_s)
        return self._ask(current, drawn, now_s)

    def _begin(self, current: OpenRound, now_s: float) -> list[Action]:
        """Begin the round: with those who have gone over into it, or when enough devices are online."""
        goes_on = bool(current.members)
        drawn = [] if self.is_paused or (len(self.online) < self.needed and not goes_on) else self._draws.free(current)
        working = len(current.members) + len(drawn)
        if not working:
            return []
        current.quorum = self.rules.quorum_of(current.plan.work, working)
        current.draws, current.has_begun = working, True
        self._start_clock(current, now_s)
        return self._ask(current, drawn, now_s, opens=True)

    def _ask(self, current: OpenRound, drawn: Sequence[str], now_s: float, *, opens: bool = False) -> list[Action]:
        """Ask drawn devices for the round's own plan, and journal that first; with `opens` also if there are none."""
        if not drawn and not opens:
            return []
        return [self._draws.take_in(current, drawn, now_s), *(self._send_plan(name, now_s) for name in drawn)]

    def _start_clock(self, current: OpenRound, now_s: float) -> None:
        """Set when a round that has members ends, and with how many results."""
        current.since_s = now_s
        self._set_deadline(current, self._answer_times.deadline_s(current.plan.work, self.rules), now_s)
        current.enough = self.rules.enough(current.plan.work, current.quorum)

    def _set_deadline(self, current: OpenRound, seconds: float, now_s: float) -> None:
        """Set when the round ends, and when those that have no other one are to send what they have done."""
        current.deadline_s = now_s + seconds
        current.stop_s = self.rules.stop_s(current.plan.work, now_s, seconds)
        current.stopped.clear()

    def _count(self, device: str, result: Result, now_s: float) -> list[Action]:
        """Count a result that is here and valid."""
        current = self._open
        if device in current.asked_s:
            current.took_s[device] = took_s = now_s - current.asked_s[device]
            if isinstance(result, Update):
                self._answer_times.add_update(device, took_s, max(result.examples.values()))
        current.results[device] = result
        self._answered.note({device: result})
        record = Record(round=current.round.number, device=device, result=result)
        return [record, self._ack(device, result), *self._advance(now_s)]

    def _close(self, current: OpenRound, now_s: float) -> list[Action]:
        number, late = current.round.number, current.unanswered
        self._answered.newest = number
        self.open = None
        if self.rules.is_buffered(current.plan.work):
            self._before = current
            return [*self._learned(current), Close(closed=current)]
        notes = [Note(text=f"round {number} closes {why_without(current, now_s)}")] if late else []
        abandoned = [Abandon(device=name) for name in current.fetching]
        return [*abandoned, *notes, *self._learned(current), Close(closed=current)]

    def _learned(self, current: OpenRound) -> list[Action]:
        if not self.rules.deadline_factor and not self.rules.work_factor:
            return []
        for name in sorted(current.took_s):
            self._answer_times.add(current.plan.work, current.took_s[name])
        return [Learned(learnt=self._answer_times.kept())]

    def _extend(self, current: OpenRound, now_s: float) -> list[Action]:
        """Extend a deadline that has passed without a quorum.

        Members that are online go on, others are replaced, and those that refused are asked again.
        """
        going_on = [name for name in current.unanswered if self._is_online(name)]
        gone = [name for name, state in current.members.items() if state != "counted" and name not in going_on]
        for name in gone:
            current.leave(name)
        drawn = self._draws.others(current, current.draws - len(current.members))
        # With nobody left to ask, those that are away stay members: they are asked when they come.
        waiting = [] if current.members or drawn else gone
        opened = self._draws.take_in(current, [*waiting, *drawn], now_s)
        self._set_deadline(current, self.rules.deadline_s, now_s)
        said = (
            f"round {current.round.number} has {len(current.results)} of the {current.quorum} results that it needs: "
            f"waiting another {self.rules.deadline_s:g} s, {len(going_on)} still at work, {len(drawn)} newly drawn"
        )
        abandoned = [Abandon(device=name) for name in gone]
        asked = [name for name in sorted({*going_on, *drawn}) if current.members[name] == "asked"]
        plans = [self._send_plan(name, now_s) for name in asked]
        return [*abandoned, Note(text=said), opened, *plans]

    def _replace(self, current: OpenRound, now_s: float) -> list[Action]:
        """Draw others that were not asked yet, if there are any: all have answered, too many with a refusal."""
        return self._ask(current, self._draws.others(current, current.quorum - len(current.results)), now_s)

    def _fail(self, device: str, why: str) -> None:
        self._open.step(device, "fail")
        self._blame(device, why)

    def _blame(self, device: str, why: str) -> None:
        self.devices.setdefault(device, DeviceState()).fault = why

    def _send_plan(self, device: str, now_s: float) -> Send:
        self._blame(device, "")
        left_s = max(1.0, self._open.deadline_s - now_s)
        return Send(device=device, message=msgspec.structs.replace(self._open.plan_of(device), deadline_s=left_s))

    @property
    def _open(self) -> OpenRound:
        if self.open is None:
            raise ValueError("no round is open")
        return self.open

    def _is_online(self, device: str) -> bool:
        return self._presence.is_online(device)

    def _send_stop(self, device: str) -> Send:
        plan = self._open.plan_of(device)
        return Send(device=device, message=Stop(round=plan.round, group=plan.group))

    def _fetched(self, device: str, step: Step) -> Update:
        current = self._open
        if device not in current.members or not current.step(device, step):
            raise ValueError(f"nothing was being fetched from {device}")
        return current.announced.pop(device)

    def _decline(self, device: str, result: Result, work: str) -> list[Action]:
        """Return the answer to a result that cannot count; empty if it can."""
        declined = self._answered.declined(self.open, device, result, work)
        if declined is None:
            return []
        self.counts[declined.reason] += 1
        return [self._ack(device, result, declined.fault)]

    @staticmethod
    def _ack(device: str, result: Result, fault: str | None = None) -> Send:
        ack = Ack(round=result.round, group=result.group, accepted=fault is None, detail=text(fault or ""))
        return Send(device=device, message=ack)
