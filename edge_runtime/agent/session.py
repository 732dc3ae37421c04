"""A device's side of a federation as a state machine: no I/O, no clock.

Rules
- Every input returns the actions that the caller must take, in their order; `now_s` is any clock that only goes
  forward.
- An input that the caller may not give now raises LocalProtocolError and changes nothing. A message that the server
  should not have sent is counted in `errors` and dropped.
- One plan at a time, one work at a time: a newer plan supersedes the present one, and its work starts only after the
  old work has stopped.
- A plan is the same plan when everything but its deadline is the same. It is answered once: with an update, an
  evaluation or a refusal. The answer is repeated until it is acknowledged, and when the same plan comes again. On a
  slow link a repetition may follow an upload that was whole with it, so the same acknowledgement may come again.
- A plan of an earlier round is stale, unless it is the first one after (re)connecting: that one is what the server
  wants now, even if the server has begun anew.
"""

# coverage: every branch

from collections import Counter

import msgspec

from edge_runtime.agent.actions import (
    Action,
    Answered,
    CancelWork,
    Exit,
    Fetch,
    Forget,
    Keep,
    Say,
    SendChunks,
    StartWork,
    Subscribe,
    Unsubscribe,
)
from edge_runtime.agent.activity import TRANSITIONS, Activity, Event
from edge_runtime.agent.state import Pending
from edge_runtime.agent.transfer import Transfers, Wanted
from edge_runtime.agent.work import Reason, Stage
from edge_runtime.wire.messages import (
    Ack,
    Evaluation,
    Finished,
    Hello,
    Need,
    Plan,
    Progress,
    Refusal,
    ServerMessage,
    Status,
    Update,
)

PROGRESS_S = 1.0
ANNOUNCE_AGAIN_S = 15.0
MAX_ANNOUNCE_AGAIN_S = 240.0
MAX_CORRUPT = 3
MAX_DETAIL = 500


class LocalProtocolError(RuntimeError):
    """The caller gave an input that is not possible in the present state; nothing has changed."""


Answer = Update | Evaluation | Refusal


class Session:
    """One device in one federation. `pending` is what an earlier process has not had acknowledged."""

    def __init__(self, hello: Hello, *, pending: Pending | None = None) -> None:
        self.errors: Counter[str] = Counter()
        """Messages from the server that were dropped, by kind."""
        self._hello = hello
        self._activity = Activity.IDLE
        self._online = False
        self._busy = False
        self._cancelled = False
        self._fresh = False
        self._plan: Plan | None = pending.plan if pending else None
        self._answer: Answer | None = pending.result if pending else None
        self._kept = pending is not None
        self._acked: Ack | None = None
        self._unsaid: Refusal | None = None
        self._transfers: Transfers | None = None
        self._corrupt: Counter[str] = Counter()
        self._progress_s = float("-inf")
        self._announced_s = float("-inf")
        self._again_s = ANNOUNCE_AGAIN_S

    @property
    def activity(self) -> Activity:
        """What the device is doing with its plan."""
        return self._activity

    @property
    def online(self) -> bool:
        """Whether the link is up."""
        return self._online

    @property
    def busy(self) -> bool:
        """Whether a work was started and has not ended."""
        return self._busy

    @property
    def plan(self) -> Plan | None:
        """The plan that is being worked on, or was last."""
        return self._plan

    # The link

    def connected(self, now_s: float) -> list[Action]:
        """The link is up: say who is here, and go on with what was interrupted."""
        if self._online or self._activity is Activity.ENDED:
            raise LocalProtocolError("connected, but the session is online already or has ended")
        self._online = self._fresh = True
        actions: list[Action] = [Say(Status(state="online")), Say(self._hello)]
        if self._unsaid is not None:
            actions.append(Say(self._unsaid))
            self._unsaid = None
        if self._activity is Activity.ANNOUNCING:
            self._again_s = ANNOUNCE_AGAIN_S
            actions += self._announce(self._answer, now_s)
        return actions + self._ask(now_s)

    def disconnected(self) -> None:
        """The link is down: work goes on, transfers wait."""
        if not self._online:
            raise LocalProtocolError("disconnected, but the session is offline")
        self._online = False
        if self._transfers is not None:
            self._transfers.lost()

    def received(self, message: ServerMessage, now_s: float) -> list[Action]:
        """The server said something."""
        if not self._online or self._activity is Activity.ENDED:
            raise LocalProtocolError("a message, but the session is offline or has ended")
        if isinstance(message, Plan):
            return self._on_plan(message, now_s)
        if isinstance(message, Need):
            return self._on_need(message, now_s)
        if isinstance(message, Ack):
            return self._on_ack(message)
        return self._on_finished(message)

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: ask or announce again where nothing came back."""
        if not self._online:
            return []
        if self._activity is Activity.ANNOUNCING and now_s - self._announced_s >= self._again_s:
            self._again_s = min(2 * self._again_s, MAX_ANNOUNCE_AGAIN_S)
            return self._announce(self._answer, now_s)
        return self._ask(now_s)

    # What the plan needs

    def wanted(self, wanted: tuple[Wanted, ...], now_s: float) -> list[Action]:
        """The answer to Fetch: what is missing. Nothing: the work can begin."""
        plan = self._expect(Activity.LOOKING, "wanted")
        if wanted:
            self._move("wanted")
            self._transfers = Transfers(wanted, now_s)
            return [Subscribe(w.blob.digest) for w in wanted] + self._ask(now_s)
        if self._busy:
            self._move("queued")
            return []
        self._move("ready")
        self._busy, self._cancelled = True, False
        return [StartWork(plan)]

    def refused(self, reason: Reason, detail: str) -> list[Action]:
        """What the plan needs cannot be had or used: an answer to Fetch, or a chunk that cannot be kept."""
        self._expect(Activity.FETCHING if self._transfers else Activity.LOOKING, "refused")
        return self._refuse(reason, detail)

    def chunk(self, digest: str, index: int, now_s: float) -> list[Action]:
        """A chunk of a blob on its way was kept, and did not make it whole.

        If it was the last one, then earlier ones were lost under our hands: everything of the blob is asked for again.
        """
        transfers = self._transfer(digest)
        if not transfers.arrived(digest, index, now_s):
            return self.corrupt(digest, now_s)
        return self._ask(now_s) + self._say_progress("download", transfers.done, transfers.total, now_s)

    def whole(self, digest: str, now_s: float) -> list[Action]:
        """A blob on its way is complete and verified."""
        plan, transfers = self._expect(Activity.FETCHING, "whole"), self._transfer(digest)
        transfers.whole(digest)
        if transfers.digests:
            return [Unsubscribe(digest), *self._ask(now_s)]
        self._transfers = None
        self._move("whole")
        return [Unsubscribe(digest), Fetch(plan)]

    def corrupt(self, digest: str, now_s: float) -> list[Action]:
        """A blob on its way was complete but not what its digest says, and was thrown away."""
        transfers = self._transfer(digest)
        self.errors["corrupt_blob"] += 1
        self._corrupt[digest] += 1
        if self._corrupt[digest] >= MAX_CORRUPT:
            return self._refuse("bundle", f"blob {digest[:12]} came {MAX_CORRUPT} times with another SHA-256")
        transfers.restart(digest)
        return self._ask(now_s)

    # Work

    def progress(self, stage: Stage, done: int, total: int, now_s: float) -> list[Action]:
        """How far the work is. Said at most once in PROGRESS_S, and only while the work is wanted."""
        return self._say_progress(stage, done, total, now_s) if self._activity is Activity.WORKING else []

    def done(self, result: Update | Evaluation, now_s: float) -> list[Action]:
        """The work has ended with a result; it is dropped if the plan was superseded."""
        self._expect_busy("done")
        if self._activity is not Activity.WORKING:
            return self.stopped()
        plan = self._expect(Activity.WORKING, "done")
        if (result.round, result.group) != (plan.round, plan.group):
            raise LocalProtocolError("done, but the result is of another plan")
        self._move("done")
        self._busy = False
        self._answer = result
        self._kept = True
        self._again_s = ANNOUNCE_AGAIN_S
        return [Keep(Pending(plan=plan, result=result)), *self._announce(result, now_s)]

    def failed(self, reason: Reason, detail: str) -> list[Action]:
        """The work has ended with a refusal; it is dropped if the plan was superseded."""
        self._expect_busy("failed")
        if self._activity is not Activity.WORKING:
            return self.stopped()
        self._busy = False
        return self._refuse(reason, detail)

    def stopped(self) -> list[Action]:
        """The work has ended because it was cancelled."""
        self._expect_busy("stopped")
        if self._activity is Activity.WORKING:
            raise LocalProtocolError("stopped, but the work was not cancelled")
        if self._activity is Activity.WAITING:
            plan = self._expect(Activity.WAITING, "stopped")
            self._move("stopped")
            self._cancelled = False
            return [StartWork(plan)]
        self._busy = False
        return []

    # What the server says

    def _on_plan(self, plan: Plan, now_s: float) -> list[Action]:
        fresh, self._fresh = self._fresh, False
        present = self._plan
        if present is not None and _same(plan, present):
            return self._on_same_plan(now_s)
        behind = present is not None and plan.round < present.round
        if behind and not fresh and self._activity is not Activity.IDLE:
            self.errors["stale_plan"] += 1
            return []
        self._move("plan")
        actions = self._stop_transfers()
        if self._busy and not self._cancelled:
            self._cancelled = True
            actions.append(CancelWork())
        if self._kept:
            self._kept = False
            actions.append(Forget())
        self._plan, self._answer, self._unsaid = plan, None, None
        self._corrupt.clear()
        return [*actions, Fetch(plan)]

    def _on_same_plan(self, now_s: float) -> list[Action]:
        """An answer is repeated; work that is not answered yet goes on."""
        if isinstance(self._answer, Refusal):
            return [Say(self._answer)]
        if self._answer is None:
            return []
        if self._activity is Activity.IDLE:
            self._move("repeated")
        self._again_s = ANNOUNCE_AGAIN_S
        return self._announce(self._answer, now_s)

    def _on_need(self, need: Need, now_s: float) -> list[Action]:
        blob = self._answer.weights if isinstance(self._answer, Update) else None
        if (
            self._activity is not Activity.ANNOUNCING
            or blob is None
            or blob.digest != need.digest
            or max(need.chunks) >= blob.chunks
        ):
            self.errors["odd_need"] += 1
            return []
        self._announced_s = now_s
        return [SendChunks(blob, need.chunks)]

    def _on_ack(self, ack: Ack) -> list[Action]:
        answer, kept = self._answer, self._kept
        due = kept or self._activity is Activity.ANNOUNCING
        if not due or answer is None or (ack.round, ack.group) != (answer.round, answer.group):
            acked = self._acked
            if acked is None or (ack.round, ack.group) != (acked.round, acked.group):
                self.errors["stale_ack"] += 1
            return []
        self._move("ack")
        self._kept, self._acked = False, ack
        if not ack.accepted:
            self._plan = self._answer = None
        return [Answered(ack), Forget()] if kept else [Answered(ack)]

    def _on_finished(self, message: Finished) -> list[Action]:
        self._move("finished")
        actions = self._stop_transfers()
        if self._busy:
            actions.append(CancelWork())
        return [*actions, Exit(message.detail)]

    # Parts of the above

    def _refuse(self, reason: Reason, detail: str) -> list[Action]:
        plan = self._plan
        assert plan is not None
        self._move("refused")
        refusal = Refusal(round=plan.round, group=plan.group, reason=reason, detail=detail[:MAX_DETAIL])
        self._answer = refusal
        actions = self._stop_transfers()
        if self._online:
            return [*actions, Say(refusal)]
        self._unsaid = refusal
        return actions

    def _announce(self, answer: Answer | None, now_s: float) -> list[Action]:
        assert answer is not None
        self._announced_s = now_s
        return [Say(answer)] if self._online else []

    def _ask(self, now_s: float) -> list[Action]:
        if self._transfers is None or not self._online:
            return []
        return [Say(Need(digest=digest, chunks=chunks)) for digest, chunks in self._transfers.ask(now_s)]

    def _stop_transfers(self) -> list[Action]:
        transfers, self._transfers = self._transfers, None
        return [Unsubscribe(digest) for digest in transfers.digests] if transfers else []

    def _say_progress(self, stage: Stage, done: int, total: int, now_s: float) -> list[Action]:
        if self._plan is None or not self._online or now_s - self._progress_s < PROGRESS_S:
            return []
        self._progress_s = now_s
        return [Say(Progress(round=self._plan.round, stage=stage, done=done, total=total))]

    def _move(self, event: Event) -> None:
        try:
            self._activity = TRANSITIONS[self._activity][event]
        except KeyError:
            raise LocalProtocolError(f"{event!r} is not possible while {self._activity.name}") from None

    def _expect(self, state: Activity, what: str) -> Plan:
        if self._activity is not state or self._plan is None:
            raise LocalProtocolError(f"{what!r} is not possible while {self._activity.name}")
        return self._plan

    def _expect_busy(self, what: str) -> None:
        if not self._busy:
            raise LocalProtocolError(f"{what!r}, but no work was started")

    def _transfer(self, digest: str) -> Transfers:
        if self._transfers is None or digest not in self._transfers.digests:
            raise LocalProtocolError(f"blob {digest[:12]} is not on its way")
        return self._transfers


def _same(plan: Plan, other: Plan) -> bool:
    return msgspec.structs.replace(plan, deadline_s=other.deadline_s) == other
