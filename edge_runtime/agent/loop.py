"""The agent's loop: the only place that joins link, session, downloads and work.

One thread takes the session's actions in order; the work alone has a thread of its own.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

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
from edge_runtime.agent.activity import Activity
from edge_runtime.agent.carried_state import CarriedState
from edge_runtime.agent.downloads import PlanDownloads
from edge_runtime.agent.energy_totals import EnergyTotals, PlanAccount
from edge_runtime.agent.fragment_channel import FragmentChannel
from edge_runtime.agent.limits import NO_LIMITS, PlanLimits
from edge_runtime.agent.line_paces import LinePaces
from edge_runtime.agent.plan_runner import PlanRunner, WorkDone, WorkFailed, WorkPlace
from edge_runtime.agent.send_queue import SendQueue
from edge_runtime.agent.session import Session
from edge_runtime.agent.state import State
from edge_runtime.agent.work import Worker, WorkRefused
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.wire.blob import MESSAGE_BYTES, Blob
from edge_runtime.wire.energy import Phase
from edge_runtime.wire.errors import BlobInvalid, MessageInvalid, TopicInvalid
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Link
from edge_runtime.wire.messages import (
    MAX_PROBES,
    Ack,
    DeviceMessage,
    FinalEnergy,
    Plan,
    Refusal,
    Status,
    decode_server,
)
from edge_runtime.wire.topics import Topics

TICK_S = 0.2
BUSY_TICK_S = 0.05
"""The tick while there is work, or something to be sent: the link announces neither the end of it nor new room."""
GOODBYE_S = 2.0
"""The longest time that the end of the loop waits for the link."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """The reason for which the loop ended."""

    kind: Literal["finished", "stopped", "refused"]
    detail: str


class Agent:
    """One device, from joining until the federation ends. `clock` is in seconds and only goes forward.

    Without an `account` a plan's energy account has times and no energy. `beat` is called while the loop runs. `run` is
    `begin`, `step` until there is an ending, `end`; a simulation takes the steps itself, runs the work in a `place`
    of its own, and draws no number by chance.
    """

    def __init__(
        self,
        link: Link,
        state: State,
        worker: Worker,
        *,
        device: str,
        topics: Topics,
        server_key: str,
        max_download_bytes: int,
        account: PlanAccount | None = None,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        place: WorkPlace | None = None,
        limits: PlanLimits = NO_LIMITS,
        chunk_bytes: int = MESSAGE_BYTES,
        draw: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._link = link
        self._state = state
        self._device = device
        self._topics = topics
        self._clock = clock
        self._beat = beat
        self._worker = worker
        self._hello = hello = worker.hello()
        self._downloads = PlanDownloads(
            state,
            server_key=server_key,
            max_bytes=max_download_bytes,
            ort_training=hello.ort_training != "off",
            limits=limits,
        )
        self._totals = EnergyTotals(account or EnergyAccount(None))
        self._channel = FragmentChannel(link.interrupt)
        self._runner = PlanRunner(
            worker,
            self._downloads,
            state.blobs,
            CarriedState(state.root / "residual"),
            self._totals,
            self._channel,
            place,
            limits.work_s,
        )
        self._limits = limits
        self._line = LinePaces(state, chunk_bytes)
        pending = state.pending_result()
        self._session = Session(hello, pending=pending, downlink=self._line.down, first_probe=draw(MAX_PROBES))
        if pending is not None:
            self._totals.begin(pending.plan, "idle")
        self._uploading = False
        self._queue = SendQueue(
            link,
            topics,
            device,
            state.weights,
            partial(self._drop, "unexpected_need"),
            uplink=self._line.up,
            clock=clock,
        )
        self._fetched: dict[str, Blob] = {}
        self._file: bytes | None = None
        self._checked: Plan | None = None
        self._bytes_before = 0
        self._ending: Ending | None = None

    @property
    def session(self) -> Session:
        """The device's side of the protocol."""
        return self._session

    def run(self, stop: threading.Event) -> Ending:
        """Serve until the federation ends, the broker refuses, or `stop` is set. Raises StateUnusable.

        In every case the status is offline afterwards, the link closed and the work ended.
        """
        self.begin()
        try:
            while self._ending is None and not stop.is_set():
                self._beat()
                self.step(BUSY_TICK_S if self._session.busy or not self._queue.is_empty else TICK_S)
        finally:
            self.end()
        return self._ending or Ending("stopped", "the agent was stopped")

    @property
    def ending(self) -> Ending | None:
        """The reason for which the loop ended, once it has."""
        return self._ending

    def trust(self, server_key: str) -> None:
        """Take manifests that another key of the server's has signed from now on."""
        self._downloads.server_key = server_key

    def begin(self) -> None:
        """Subscribe to the server's messages."""
        self._link.subscribe(*self._topics.to_device(self._device))

    def end(self) -> None:
        """End the work, report the status offline and close the link."""
        self._runner.cancel()
        self._send_goodbye()
        self._link.close()
        self._runner.close()
        self._totals.close()

    def step(self, timeout_s: float) -> None:
        """Handle one event of the link, if one arrives in time, then the work's progress and the clock."""
        event = self._link.receive(timeout_s)
        if isinstance(event, Delivery):
            self._on_delivery(event)
        elif isinstance(event, Connected):
            self._on_connected()
        elif isinstance(event, Disconnected):
            self._on_disconnected(event)
        self._on_work()
        self._queue.add_fragments(self._channel.take())
        self._act(self._session.tick(self._clock()))
        self._queue.flush()
        if phase := self._phase():
            self._totals.switch(phase)

    def _phase(self) -> Phase | None:
        """Return the phase that energy is booked to; None where the work books it, or there is no plan."""
        match self._session.activity:
            case Activity.CHECKING | Activity.DOWNLOADING:
                return "download" if self._session.online else "idle"
            case Activity.ANNOUNCING:
                return "upload" if self._uploading and self._session.online else "idle"
            case Activity.WAITING:
                return "idle"
            case _:
                return None

    # Events

    def _on_connected(self) -> None:
        if self._session.online:
            self._session.on_disconnected()
        self._line.uplink.on_upload_lost()
        _log.info("connected")
        self._act(self._session.on_connected(self._clock()))

    def _on_disconnected(self, event: Disconnected) -> None:
        _log.warning("disconnected: %s", event.reason)
        self._line.uplink.on_upload_lost()
        self._queue.keep_only(Refusal, FinalEnergy)
        if self._session.online:
            self._session.on_disconnected()
        if event.refused:
            self._ending = Ending("refused", event.reason)
        if event.too_large_bytes is not None:
            _log.warning(
                "the broker cuts the connection on a message of %d bytes: at most %d bytes of a file go in one from "
                "now on (chunk_bytes)",
                event.too_large_bytes,
                self._line.halve(event.too_large_bytes),
            )

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            address = self._topics.parse(delivery.topic)
        except TopicInvalid as exc:
            self._drop("topic", str(exc))
            return
        if address.device != self._device:
            self._drop("topic", f"{delivery.topic[:200]!r} is not for this device")
        elif address.kind == "download" and address.digest is not None and address.index is not None:
            self._on_run(address.digest, address.index, delivery.payload)
        elif address.kind == "down":
            self._on_fragment(delivery.payload)
        elif address.kind == "command" and self._session.online:
            self._on_command(delivery.payload)
        else:
            self._drop("topic", f"{delivery.topic[:200]!r} is not for this device")

    def _on_fragment(self, fragment: bytes) -> None:
        try:
            self._channel.deliver(fragment)
        except MessageInvalid as exc:
            self._drop("fragment", str(exc))

    def _on_command(self, payload: bytes) -> None:
        try:
            message = decode_server(payload)
        except MessageInvalid as exc:
            self._drop("message", str(exc))
            return
        before = self._session.errors.copy()
        actions = self._session.on_message(message, self._clock())
        for kind in self._session.errors - before:
            self._log_dropped(kind, f"{type(message).__name__} does not fit what this device is doing")
        self._act(actions)

    def _on_plan_closed(self, ack: Ack) -> None:
        _log.info("round %d: %s %s", ack.round, "accepted" if ack.accepted else "dropped", ack.detail)
        if not ack.accepted:
            self._line.uplink.on_upload_lost()
        else:
            self._line.uplink.on_acknowledged(self._clock())
        self._line.save()
        self._report_energy()

    def _on_run(self, digest: str, index: int, payload: bytes) -> None:
        now_s = self._clock()
        if not payload:
            self._act(self._session.on_marker(index, now_s))
            return
        try:
            outcome = self._downloads.accept(digest, index, payload)
        except BlobInvalid as exc:
            self._drop("chunk", str(exc))
            return
        except WorkRefused as refusal:
            self._act(self._session.on_files_refused(refusal.reason, refusal.detail))
            return
        if outcome == "unrequested":  # of an earlier plan, or an earlier process's
            self._session.errors["unrequested_run"] += 1
            return
        run = self._fetched[digest].run_at(index, len(payload))
        if outcome == "kept":
            self._act(self._session.on_run_kept(digest, run, now_s))
        elif outcome == "complete":
            self._act(self._session.on_blob_complete(digest, run, now_s))
        else:
            self._act(self._session.on_blob_corrupt(digest, now_s))
            self._log_dropped("corrupt_blob", f"blob {digest[:12]} arrived with another SHA-256")

    def _on_work(self) -> None:
        now_s = self._clock()
        if progress := self._runner.progress():
            self._act(self._session.on_progress(*progress, now_s))
        outcome = self._runner.poll()
        if isinstance(outcome, WorkDone):
            self._file = outcome.file
            self._act(self._session.on_work_done(outcome.message, now_s))
            self._file = None
        elif isinstance(outcome, WorkFailed):
            self._act(self._session.on_work_failed(outcome.reason, outcome.detail))
        elif outcome is not None:
            self._act(self._session.on_work_stopped())

    # Actions of the session

    def _act(self, actions: Iterable[Action]) -> None:  # noqa: C901, PLR0912 - one flat case for each action
        for action in actions:
            match action:
                case SendMessage(message):
                    self._send(message)
                case StopFetching(digest):
                    self._downloads.stop(digest)
                case CheckFiles(plan):
                    self._check_files(plan)
                case StartWork(plan):
                    self._renew_hello()
                    _log.info("round %d: %s %s", plan.round, plan.work, plan.group)
                    self._runner.start(plan, self._link.bytes_in - self._bytes_before, self._line.uplink.bytes_per_s)
                case CancelWork():
                    self._runner.cancel()
                case StopWork():
                    self._runner.stop()
                case SaveResult(pending):
                    self._uploading = False
                    self._state.save_result(pending, self._file)
                    _log.info("round %d: done", pending.plan.round)
                case DropResult():
                    self._queue.drop_runs()
                    self._state.drop_result()
                case SendRuns(blob, runs):
                    self._uploading = True
                    self._line.uplink.on_runs_requested(blob, runs, self._clock())
                    self._queue.add_runs(blob, runs)
                case SendMarker(digest, number):
                    self._queue.add_marker(digest, number)
                case ClosePlan(ack):
                    self._on_plan_closed(ack)
                case Exit(detail):
                    self._report_energy()
                    self._ending = Ending("finished", detail)

    def _renew_hello(self) -> None:
        """Take up samples that have come since the work before; what the server knows of the data set stays true."""
        hello = self._worker.hello()
        if hello != self._hello:
            self._hello = hello
            self._act(self._session.on_hello_changed(hello, self._clock()))

    def _check_files(self, plan: Plan) -> None:
        if plan is not self._checked:
            _log.info("round %d: asked to %s %s", plan.round, plan.work, plan.group)
            self._report_energy()
            self._totals.begin(plan, "download")
            self._checked, self._bytes_before = plan, self._link.bytes_in
        if fault := self._limits.fault(plan):
            self._act(self._session.on_files_refused("limits", fault))
            return
        try:
            missing = self._downloads.missing(plan)
        except WorkRefused as refusal:
            self._act(self._session.on_files_refused(refusal.reason, refusal.detail))
            return
        if missing:
            size = sum(each.size_bytes for each in missing)
            self._fetched = {each.blob.digest: each.blob for each in missing}
            _log.info("round %d: downloading %d bytes", plan.round, size)
        self._act(self._session.on_files_checked(missing, self._clock()))

    def _send(self, message: DeviceMessage | Status) -> None:
        if isinstance(message, Refusal):
            _log.warning("round %d: refused (%s): %s", message.round, message.reason, message.detail)
        self._queue.add_message(message)
        self._queue.flush()
        if isinstance(message, Refusal):
            self._report_energy()

    def _report_energy(self) -> None:
        """Send the energy account of a plan that is over, however it ended."""
        if energy := self._totals.end():
            self._send(energy)

    def _send_goodbye(self) -> None:
        """Report the status offline, since a clean end sends no will."""
        if not self._session.online:
            return
        self._queue.keep_only(FinalEnergy)
        self._queue.add_message(Status(state="offline"))
        until_s = self._clock() + GOODBYE_S
        self._queue.flush()
        while not self._queue.is_empty and self._clock() < until_s:
            self._link.receive(TICK_S)
            self._queue.flush()

    def _drop(self, kind: str, reason: str) -> None:
        """Count and log something that arrived and cannot be used."""
        self._session.errors[kind] += 1
        self._log_dropped(kind, reason)

    def _log_dropped(self, kind: str, reason: str) -> None:
        count = self._session.errors[kind]
        if count & (count - 1) == 0:  # 1, 2, 4, 8, …: a sender of rubbish does not fill the log
            _log.warning("dropped (%s, %d so far): %s", kind, count, reason)
