"""A device's side of a federation as a state machine: no I/O, no clock.

Rules
- Every input returns the actions that the caller must take, in order; `now_s` is any clock that only goes forward.
- An input that the caller may not give now raises LocalProtocolError and changes nothing. A message that the server
  should not have sent is counted in `errors` and dropped.
- One plan at a time, one work at a time: a newer plan supersedes the present one, and its work starts only after the
  old work has stopped.
- A plan is the same plan when everything but its deadline is the same. It is answered once: with an update, an
  evaluation or a refusal. The answer is repeated until it is acknowledged, and when the same plan comes again. On a
  slow link a repetition may cross the acknowledgement, so the same acknowledgement may come again.
- The device introduces itself when it connects, when the server calls the roll, and every few minutes: a server that
  has started again, or whose broker forgets, learns who is there whatever was lost.
- A device that is told to stop ends its training, and answers with what it has done.
- A plan of an earlier round is stale, unless it is the first one after (re)connecting: that one is what the server
  asks for now, even if the server has started again.
"""

# coverage: every branch

from collections import Counter

import msgspec

from edge_runtime.agent.actions import (
    Action,
    CancelWork,
    CheckFiles,
    ClosePlan,
    DropResult,
    Exit,
    SaveResult,
    SendMarker,
    SendMessage,
    SendRuns,
    StartWork,
    StopFetching,
    StopWork,
)
from edge_runtime.agent.activity import TRANSITIONS, Activity, Event
from edge_runtime.agent.missing import MissingBlob
from edge_runtime.agent.state import Pending
from edge_runtime.wire.blob import ChunkRun
from edge_runtime.wire.fetch import Fetch
from edge_runtime.wire.messages import (
    MAX_PROBES,
    Ack,
    Evaluation,
    Finished,
    Hello,
    LossProbe,
    Need,
    Plan,
    Progress,
    Refusal,
    RefusalReason,
    RollCall,
    ServerMessage,
    Status,
    Stop,
    Update,
    WorkStage,
    text,
)
from edge_runtime.wire.pace import Pace

PROGRESS_S = 1.0
MAX_PROGRESS_S = 30.0
"""The pause between two reports of progress, which grows by half with each report of a plan."""
FIRST_ANNOUNCE_AGAIN_S = 15.0
MAX_ANNOUNCE_AGAIN_S = 240.0
MAX_CORRUPT = 3
HELLO_S = 120.0
"""The pause between two Hellos, and …"""
HELLO_SPREAD_S = 60
"""… how much longer it is at most: devices that were asked at once do not go on in step."""


class LocalProtocolError(RuntimeError):
    """The caller gave an input that is not possible in the present state; nothing has changed."""


Answer = Update | Evaluation | Refusal


class Session:
    """One device in one federation. `pending` is an earlier process's result that was not acknowledged yet.

    `downlink` is the pace of what comes, `first_probe` a number that earlier processes have not used.
    """

    def __init__(
        self, hello: Hello, *, pending: Pending | None = None, downlink: Pace | None = None, first_probe: int = 0
    ) -> None:
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
        self._saved = pending is not None
        self._acked: Ack | None = None
        self._unsent_refusal: Refusal | None = None
        self._introduced_s = 0.0
        self._hello_pause_s = HELLO_S + first_probe % HELLO_SPREAD_S
        self._downlink = downlink or Pace()
        self._first_probe = first_probe
        self._fetch: Fetch | None = None
        self._fetched: dict[str, MissingBlob] = {}
        self._corrupt_times: Counter[str] = Counter()
        self._progress_s = float("-inf")
        self._progress_pause_s = PROGRESS_S
        self._announced_s = float("-inf")
        self._again_s = FIRST_ANNOUNCE_AGAIN_S

    @property
    def activity(self) -> Activity:
        """The device's activity with its plan."""
        return self._activity

    @property
    def online(self) -> bool:
        """Whether the link is up."""
        return self._online

    @property
    def busy(self) -> bool:
        """Whether work was started and has not ended."""
        return self._busy

    @property
    def plan(self) -> Plan | None:
        """The present plan, or the last one."""
        return self._plan

    # The link

    def on_connected(self, now_s: float) -> list[Action]:
        """Send the device's status and hello, and resume announcements and downloads: the link is up."""
        if self._online or self._activity is Activity.ENDED:
            raise LocalProtocolError("the link is up, but the session is online already or has ended")
        self._online = True
        return self._introduce(now_s)

    def _introduce(self, now_s: float) -> list[Action]:
        """Say what the server may not know: that the device is there, its answer, and what it waits for."""
        self._fresh = True
        self._introduced_s = now_s
        actions: list[Action] = [SendMessage(Status(state="online")), SendMessage(self._hello)]
        if self._unsent_refusal is not None:
            actions.append(SendMessage(self._unsent_refusal))
            self._unsent_refusal = None
        if self._activity is Activity.ANNOUNCING:
            self._again_s = FIRST_ANNOUNCE_AGAIN_S
            actions += self._announce(self._answer, now_s)
        if self._fetch is not None:
            self._fetch.doubt()
        return actions + self._request(now_s)

    def on_hello_changed(self, hello: Hello, now_s: float) -> list[Action]:
        """Say what the device has become: its data set has grown, for instance."""
        self._hello = hello
        if not self._online:
            return []
        self._introduced_s = now_s
        return [SendMessage(hello)]

    def on_disconnected(self) -> None:
        """Let transfers wait, and work go on: the link is down."""
        if not self._online:
            raise LocalProtocolError("the link is down, but the session is offline")
        self._online = False

    def on_message(self, message: ServerMessage, now_s: float) -> list[Action]:  # noqa: PLR0911 - one flat case for each
        """Handle a message from the server."""
        if not self._online or self._activity is Activity.ENDED:
            raise LocalProtocolError("a message came, but the session is offline or has ended")
        if isinstance(message, Plan):
            return self._on_plan(message, now_s)
        if isinstance(message, Need):
            return self._on_need(message, now_s)
        if isinstance(message, RollCall):
            return self._introduce(now_s)
        if isinstance(message, LossProbe):
            return [SendMarker(message.digest, message.number)]
        if isinstance(message, Stop):
            return self._on_stop(message)
        if isinstance(message, Ack):
            return self._on_ack(message)
        return self._on_finished(message)

    def tick(self, now_s: float) -> list[Action]:
        """Request or announce again where no answer came in time."""
        if not self._online:
            return []
        if now_s - self._introduced_s >= self._hello_pause_s:
            self._introduced_s = now_s
            return [SendMessage(self._hello)]
        if self._activity is Activity.ANNOUNCING and now_s - self._announced_s >= self._again_s:
            self._again_s = min(2 * self._again_s, MAX_ANNOUNCE_AGAIN_S)
            return self._announce(self._answer, now_s)
        return self._request(now_s)

    # The plan's files

    def on_files_checked(self, missing: tuple[MissingBlob, ...], now_s: float) -> list[Action]:
        """Download the missing blobs, or start the work if there are none: the answer to CheckFiles."""
        plan = self._expect(Activity.CHECKING, "on_files_checked")
        if missing:
            self._move("files_missing")
            self._first_probe += 1000
            self._fetch = Fetch(self._downlink, first_probe=self._first_probe % MAX_PROBES)
            self._fetched = {each.blob.digest: each for each in missing}
            for each in missing:
                self._fetch.want(each.blob, each.runs)
            return self._request(now_s)
        if self._busy:
            self._move("wait")
            return []
        self._move("start")
        self._busy, self._cancelled = True, False
        return [StartWork(plan)]

    def on_files_refused(self, reason: RefusalReason, detail: str) -> list[Action]:
        """Refuse the plan, whose files cannot be used, or a chunk of which cannot be stored."""
        self._expect(Activity.DOWNLOADING if self._fetch else Activity.CHECKING, "on_files_refused")
        return self._refuse(reason, detail)

    def on_run_kept(self, digest: str, run: ChunkRun, now_s: float) -> list[Action]:
        """Request more: a run of a blob on its way was stored, and did not complete it.

        If it was the last one, earlier ones were lost in the store: the whole blob is requested again.
        """
        fetch = self._fetching(digest)
        fetch.on_run(digest, run, now_s)
        if not fetch.lacks(digest):
            return self.on_blob_corrupt(digest, now_s)
        return self._request(now_s) + self._send_progress("download", fetch.done_bytes, fetch.total_bytes, now_s)

    def on_blob_complete(self, digest: str, run: ChunkRun, now_s: float) -> list[Action]:
        """Go on with the other blobs, or check the files again: a blob on its way is complete with this run."""
        plan, fetch = self._expect(Activity.DOWNLOADING, "on_blob_complete"), self._fetching(digest)
        fetch.on_run(digest, run, now_s)
        fetch.drop(digest)
        del self._fetched[digest]
        if self._fetched:
            return self._request(now_s)
        self._fetch = None
        self._move("files_complete")
        return [CheckFiles(plan)]

    def on_blob_corrupt(self, digest: str, now_s: float) -> list[Action]:
        """Request a blob again, or refuse the plan: it was complete, but with another digest, and was dropped."""
        fetch = self._fetching(digest)
        self.errors["corrupt_blob"] += 1
        self._corrupt_times[digest] += 1
        if self._corrupt_times[digest] >= MAX_CORRUPT:
            return self._refuse("bundle", f"blob {digest[:12]} arrived {MAX_CORRUPT} times with another SHA-256")
        fetch.drop(digest)
        blob = self._fetched[digest].blob
        fetch.want(blob, [ChunkRun(0, blob.chunks)])
        return self._request(now_s)

    def on_marker(self, number: int, now_s: float) -> list[Action]:
        """Request again what was lost: the server has sent all that was requested before a probe."""
        if self._fetch is None:
            return []
        self._fetch.on_marker(number, now_s)
        return self._request(now_s)

    # Work

    def on_progress(self, stage: WorkStage, done: int, total: int, now_s: float) -> list[Action]:
        """Report the work's progress, not too often, and only while its result is wanted."""
        return self._send_progress(stage, done, total, now_s) if self._activity is Activity.WORKING else []

    def on_work_done(self, result: Update | Evaluation, now_s: float) -> list[Action]:
        """Save and announce the work's result; it is dropped if the plan was superseded."""
        self._expect_busy("on_work_done")
        if self._activity is not Activity.WORKING:
            return self.on_work_stopped()
        plan = self._expect(Activity.WORKING, "on_work_done")
        if (result.round, result.group) != (plan.round, plan.group):
            raise LocalProtocolError("the work is done, but its result is of another plan")
        self._move("done")
        self._busy = False
        self._answer = result
        self._saved = True
        self._again_s = FIRST_ANNOUNCE_AGAIN_S
        return [SaveResult(Pending(plan=plan, result=result)), *self._announce(result, now_s)]

    def on_work_failed(self, reason: RefusalReason, detail: str) -> list[Action]:
        """Refuse the plan, whose work cannot be done; nothing is sent if the plan was superseded."""
        self._expect_busy("on_work_failed")
        if self._activity is not Activity.WORKING:
            return self.on_work_stopped()
        self._busy = False
        return self._refuse(reason, detail)

    def on_work_stopped(self) -> list[Action]:
        """Start the work that waits, if there is one: the cancelled work has ended."""
        self._expect_busy("on_work_stopped")
        if self._activity is Activity.WORKING:
            raise LocalProtocolError("the work has stopped, but it was not cancelled")
        if self._activity is Activity.WAITING:
            plan = self._expect(Activity.WAITING, "on_work_stopped")
            self._move("stopped")
            self._cancelled = False
            return [StartWork(plan)]
        self._busy = False
        return []

    # Messages from the server

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
        actions = self._stop_fetching()
        if self._busy and not self._cancelled:
            self._cancelled = True
            actions.append(CancelWork())
        if self._saved:
            self._saved = False
            actions.append(DropResult())
        self._plan, self._answer, self._unsent_refusal = plan, None, None
        self._progress_pause_s = PROGRESS_S
        self._corrupt_times.clear()
        return [*actions, CheckFiles(plan)]

    def _on_same_plan(self, now_s: float) -> list[Action]:
        """Repeat the answer; work without an answer yet goes on."""
        if isinstance(self._answer, Refusal):
            return [SendMessage(self._answer)]
        if self._answer is None:
            return []
        if self._activity is Activity.IDLE:
            self._move("repeated_plan")
        self._again_s = FIRST_ANNOUNCE_AGAIN_S
        return self._announce(self._answer, now_s)

    def _on_need(self, need: Need, now_s: float) -> list[Action]:
        blob = self._answer.weights if isinstance(self._answer, Update) else None
        if (
            self._activity is not Activity.ANNOUNCING
            or blob is None
            or blob.digest != need.digest
            or max(run.end for run in need.runs) > blob.chunks
        ):
            self.errors["unexpected_need"] += 1
            return []
        self._announced_s = now_s
        return [SendRuns(blob, need.runs)]

    def _on_stop(self, stop: Stop) -> list[Action]:
        plan = self._plan
        is_training = self._activity is Activity.WORKING and plan is not None and plan.work == "train"
        if plan is None or not is_training or (stop.round, stop.group) != (plan.round, plan.group):
            self.errors["unexpected_stop"] += 1
            return []
        return [StopWork()]

    def _on_ack(self, ack: Ack) -> list[Action]:
        answer, saved = self._answer, self._saved
        due = saved or self._activity is Activity.ANNOUNCING
        if not due or answer is None or (ack.round, ack.group) != (answer.round, answer.group):
            acked = self._acked
            if acked is None or (ack.round, ack.group) != (acked.round, acked.group):
                self.errors["stale_ack"] += 1
            return []
        self._move("ack")
        self._saved, self._acked = False, ack
        if not ack.accepted:
            self._plan = self._answer = None
        return [ClosePlan(ack), DropResult()] if saved else [ClosePlan(ack)]

    def _on_finished(self, message: Finished) -> list[Action]:
        self._move("finished")
        actions = self._stop_fetching()
        if self._busy:
            actions.append(CancelWork())
        return [*actions, Exit(message.detail)]

    # Parts of the above

    def _refuse(self, reason: RefusalReason, detail: str) -> list[Action]:
        plan = self._plan
        assert plan is not None
        self._move("refused")
        refusal = Refusal(round=plan.round, group=plan.group, reason=reason, detail=text(detail))
        self._answer = refusal
        actions = self._stop_fetching()
        if self._online:
            return [*actions, SendMessage(refusal)]
        self._unsent_refusal = refusal
        return actions

    def _announce(self, answer: Answer | None, now_s: float) -> list[Action]:
        assert answer is not None
        self._announced_s = now_s
        return [SendMessage(answer)] if self._online else []

    def _request(self, now_s: float) -> list[Action]:
        if self._fetch is None or not self._online:
            return []
        return [SendMessage(message) for message in self._fetch.requests(now_s)]

    def _stop_fetching(self) -> list[Action]:
        fetched, self._fetched, self._fetch = self._fetched, {}, None
        return [StopFetching(digest) for digest in fetched]

    def _send_progress(self, stage: WorkStage, done: int, total: int, now_s: float) -> list[Action]:
        if self._plan is None or not self._online or now_s - self._progress_s < self._progress_pause_s:
            return []
        self._progress_s = now_s
        self._progress_pause_s = min(MAX_PROGRESS_S, 1.5 * self._progress_pause_s)
        return [SendMessage(Progress(round=self._plan.round, stage=stage, done=done, total=total))]

    def _move(self, event: Event) -> None:
        try:
            self._activity = TRANSITIONS[self._activity][event]
        except KeyError:
            raise LocalProtocolError(f"{event!r} is not possible while {self._activity.name}") from None

    def _expect(self, state: Activity, method: str) -> Plan:
        if self._activity is not state or self._plan is None:
            raise LocalProtocolError(f"{method!r} is not possible while {self._activity.name}")
        return self._plan

    def _expect_busy(self, method: str) -> None:
        if not self._busy:
            raise LocalProtocolError(f"{method!r} is not possible: no work was started")

    def _fetching(self, digest: str) -> Fetch:
        if self._fetch is None or digest not in self._fetched:
            raise LocalProtocolError(f"blob {digest[:12]} is not on its way")
        return self._fetch


def _same(plan: Plan, other: Plan) -> bool:
    return msgspec.structs.replace(plan, deadline_s=other.deadline_s) == other
