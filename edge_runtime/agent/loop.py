"""The agent's loop: the only place that joins link, session, downloads and work.

Everything the session says is done in order by one thread; the work alone has its own. What cannot be sent yet,
because the link is full, waits here by reference, never as data.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

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
from edge_runtime.agent.activity import Activity
from edge_runtime.agent.carried_state import CarriedVectors
from edge_runtime.agent.downloads import Downloads
from edge_runtime.agent.energy_totals import EnergyTotals, PlanAccount
from edge_runtime.agent.fragment_channel import FragmentChannel
from edge_runtime.agent.job import Done, Failed, Job, Submit
from edge_runtime.agent.session import Session
from edge_runtime.agent.state import State
from edge_runtime.agent.uplink import Uplink
from edge_runtime.agent.work import Worker, WorkRefused
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.energy import Phase
from edge_runtime.wire.errors import BlobInvalid, MessageInvalid, TopicInvalid
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Link, LinkFull
from edge_runtime.wire.messages import (
    Ack,
    DeviceMessage,
    FinalEnergy,
    Plan,
    Progress,
    Refusal,
    Status,
    decode_server,
    encode,
)
from edge_runtime.wire.topics import Topics

TICK_S = 0.2
BUSY_TICK_S = 0.05
"""While there is work, whose end the link does not announce."""
MAX_WAITING = 256
"""Chunks and messages that wait for the link; beyond that chunks are dropped, and the server asks again."""
GOODBYE_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """Why the loop ended."""

    kind: Literal["finished", "stopped", "refused"]
    detail: str


class Agent:
    """One device, from joining until the federation ends. `clock` is in seconds and only goes forward.

    Without an `account` times and nothing else are known of what a plan costs. `beat` is called while the loop runs.
    `run` is `begin`, `step` until there is an ending, `end`; a simulation takes the steps itself, and says with
    `submit` where the work is run.
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
        submit: Submit | None = None,
    ) -> None:
        self._link = link
        self._state = state
        self._device = device
        self._topics = topics
        self._clock = clock
        self._beat = beat
        hello = worker.hello()
        self._downloads = Downloads(
            state, server_key=server_key, max_bytes=max_download_bytes, official=hello.ort_training != "off"
        )
        self._totals = EnergyTotals(account or EnergyAccount(None))
        self._exchange = FragmentChannel(link.interrupt)
        self._job = Job(
            worker,
            self._downloads,
            state.blobs,
            CarriedVectors(state.root / "residual"),
            self._totals,
            self._exchange,
            submit,
        )
        self._uplink = Uplink(state.upload_bytes_per_s())
        pending = state.pending()
        self._session = Session(hello, pending=pending)
        if pending is not None:
            self._totals.begin(pending.plan, "idle")
        self._uploading = False
        self._waiting: deque[DeviceMessage | Status | tuple[Blob, int] | bytes] = deque()
        self._file: bytes | None = None
        self._fetched: Plan | None = None
        self._bytes_before = 0
        self._left: set[str] = set()
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
                self.step(BUSY_TICK_S if self._session.busy else TICK_S)
        finally:
            self.end()
        return self._ending or Ending("stopped", "the agent was told to stop")

    @property
    def ending(self) -> Ending | None:
        """Why the loop ended, once it has."""
        return self._ending

    def begin(self) -> None:
        """Listen to the server."""
        self._link.subscribe(self._topics.command(self._device), self._topics.down(self._device))

    def end(self) -> None:
        """End the work, say offline and close the link."""
        self._job.cancel()
        self._say_goodbye()
        self._link.close()
        self._job.close()
        self._totals.close()

    def step(self, timeout_s: float) -> None:
        """Take one event from the link, if one comes in time, and do what follows from it, the work and the clock."""
        event = self._link.receive(timeout_s)
        if isinstance(event, Delivery):
            self._on_delivery(event)
        elif isinstance(event, Connected):
            self._on_connected()
        elif isinstance(event, Disconnected):
            self._on_disconnected(event)
        self._on_work()
        self._waiting.extend(self._exchange.take())
        self._do(self._session.tick(self._clock()))
        self._flush()
        if phase := self._phase():
            self._totals.switch(phase)

    def _phase(self) -> Phase | None:
        """What the joules are spent on now; None where the work itself says so, or there is no plan."""
        match self._session.activity:
            case Activity.LOOKING | Activity.FETCHING:
                return "download" if self._session.online else "idle"
            case Activity.ANNOUNCING:
                return "upload" if self._uploading and self._session.online else "idle"
            case Activity.WAITING:
                return "idle"
            case _:
                return None

    # What happens

    def _on_connected(self) -> None:
        if self._session.online:
            self._session.disconnected()
        self._uplink.lost()
        _log.info("connected")
        self._left.clear()
        self._do(self._session.connected(self._clock()))

    def _on_disconnected(self, event: Disconnected) -> None:
        _log.warning("disconnected: %s", event.reason)
        self._uplink.lost()
        self._waiting = deque(item for item in self._waiting if isinstance(item, Refusal | FinalEnergy))  # said once
        if self._session.online:
            self._session.disconnected()
        if event.refused:
            self._ending = Ending("refused", event.reason)

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            address = self._topics.parse(delivery.topic)
        except TopicInvalid as exc:
            self._drop("topic", str(exc))
            return
        if address.digest is not None and address.index is not None and address.device is None:
            self._on_chunk(address.digest, address.index, delivery.payload)
        elif address.kind == "down" and address.device == self._device:
            self._on_piece(delivery.payload)
        elif address.kind == "command" and address.device == self._device and self._session.online:
            self._on_command(delivery.payload)
        else:
            self._drop("topic", f"{delivery.topic[:200]!r} is not for this device")

    def _on_piece(self, piece: bytes) -> None:
        try:
            self._exchange.deliver(piece)
        except MessageInvalid as exc:
            self._drop("exchange", str(exc))

    def _on_command(self, payload: bytes) -> None:
        try:
            message = decode_server(payload)
        except MessageInvalid as exc:
            self._drop("message", str(exc))
            return
        before = self._session.errors.copy()
        actions = self._session.received(message, self._clock())
        for kind in self._session.errors - before:
            self._log_dropped(kind, f"{type(message).__name__} does not fit what this device is doing")
        self._do(actions)

    def _answered(self, ack: Ack) -> None:
        _log.info("round %d: %s %s", ack.round, "accepted" if ack.accepted else "dropped", ack.detail)
        if not ack.accepted:
            self._uplink.lost()
        elif self._uplink.acknowledged(self._clock()) and (speed := self._uplink.bytes_per_s) is not None:
            self._state.keep_upload_speed(speed)
        self._settle()

    def _on_chunk(self, digest: str, index: int, payload: bytes) -> None:
        now_s = self._clock()
        try:
            arrival = self._downloads.accept(digest, index, payload)
        except BlobInvalid as exc:
            self._drop("chunk", str(exc))
            return
        except WorkRefused as refusal:
            self._do(self._session.refused(refusal.reason, refusal.detail))
            return
        if arrival == "kept":
            self._do(self._session.chunk(digest, index, now_s))
        elif arrival == "whole":
            self._do(self._session.whole(digest, now_s))
        elif arrival == "corrupt":
            self._do(self._session.corrupt(digest, now_s))
            self._log_dropped("corrupt_blob", f"blob {digest[:12]} came with another SHA-256")
        elif digest not in self._left:  # a subscription of an earlier process, or chunks that were under way
            self._left.add(digest)
            self._link.unsubscribe(self._topics.downloads(digest))

    def _on_work(self) -> None:
        now_s = self._clock()
        if progress := self._job.progress():
            self._do(self._session.progress(*progress, now_s))
        outcome = self._job.poll()
        if isinstance(outcome, Done):
            self._file = outcome.file
            self._do(self._session.done(outcome.message, now_s))
            self._file = None
        elif isinstance(outcome, Failed):
            self._do(self._session.failed(outcome.reason, outcome.detail))
        elif outcome is not None:
            self._do(self._session.stopped())

    # What the session says

    def _do(self, actions: Iterable[Action]) -> None:  # noqa: C901 - one flat case for each action
        for action in actions:
            match action:
                case Say(message):
                    self._say(message)
                case Subscribe(digest):
                    self._left.discard(digest)
                    self._link.subscribe(self._topics.downloads(digest))
                case Unsubscribe(digest):
                    self._downloads.stop(digest)
                    self._link.unsubscribe(self._topics.downloads(digest))
                case Fetch(plan):
                    self._fetch(plan)
                case StartWork(plan):
                    _log.info("round %d: %s %s", plan.round, plan.work, plan.group)
                    self._job.start(plan, self._link.bytes_in - self._bytes_before, self._uplink.bytes_per_s)
                case CancelWork():
                    self._job.cancel()
                case Keep(pending):
                    self._uploading = False
                    self._state.keep(pending, self._file)
                    _log.info("round %d: done", pending.plan.round)
                case Forget():
                    self._state.forget()
                case SendChunks(blob, indices):
                    self._uploading = True
                    self._uplink.sending(blob, indices, self._clock())
                    room = max(0, MAX_WAITING - len(self._waiting))
                    self._waiting.extend((blob, index) for index in indices[:room])
                case Answered(ack):
                    self._answered(ack)
                case Exit(detail):
                    self._settle()
                    self._ending = Ending("finished", detail)

    def _fetch(self, plan: Plan) -> None:
        if plan is not self._fetched:
            _log.info("round %d: asked to %s %s", plan.round, plan.work, plan.group)
            self._settle()
            self._totals.begin(plan, "download")
            self._fetched, self._bytes_before = plan, self._link.bytes_in
        try:
            wanted = self._downloads.wanted(plan)
        except WorkRefused as refusal:
            self._do(self._session.refused(refusal.reason, refusal.detail))
            return
        if wanted:
            size = sum(blob.blob.length(index) for blob in wanted for index in blob.missing)
            _log.info("round %d: fetching %d bytes", plan.round, size)
        self._do(self._session.wanted(wanted, self._clock()))

    def _say(self, message: DeviceMessage | Status) -> None:
        if isinstance(message, Refusal):
            _log.warning("round %d: refused (%s): %s", message.round, message.reason, message.detail)
        if not (isinstance(message, Progress) and self._waiting):
            self._waiting.append(message)
        self._flush()
        if isinstance(message, Refusal):
            self._settle()

    def _settle(self) -> None:
        """A plan is over, however it ended: say what it has cost."""
        if spent := self._totals.end():
            self._say(spent)

    def _flush(self) -> None:
        """Publish what waits, in its order, as far as the link has room."""
        while self._waiting:
            item = self._waiting[0]
            try:
                self._publish(item)
            except LinkFull:
                return
            except (BlobInvalid, OSError) as exc:
                self._drop("odd_need", f"a chunk of the update cannot be read: {exc}")
            self._waiting.popleft()

    def _publish(self, item: DeviceMessage | Status | tuple[Blob, int] | bytes) -> None:
        if isinstance(item, bytes):
            self._link.publish(self._topics.up(self._device), item)
        elif isinstance(item, tuple):
            blob, index = item
            data = self._state.weights.chunk(blob, index)
            self._link.publish(self._topics.upload(self._device, blob.digest, index), data)
        elif isinstance(item, Status):
            self._link.publish(self._topics.status(self._device), encode(item), retain=True)
        else:
            self._link.publish(self._topics.event(self._device), encode(item))

    def _say_goodbye(self) -> None:
        """Say offline, since a clean end sends no will."""
        if not self._session.online:
            return
        self._waiting = deque(item for item in self._waiting if isinstance(item, FinalEnergy))
        self._waiting.append(Status(state="offline"))
        until_s = self._clock() + GOODBYE_S
        self._flush()
        while self._waiting and self._clock() < until_s:
            self._link.receive(TICK_S)
            self._flush()

    def _drop(self, kind: str, why: str) -> None:
        """Count something that came and cannot be used."""
        self._session.errors[kind] += 1
        self._log_dropped(kind, why)

    def _log_dropped(self, kind: str, why: str) -> None:
        count = self._session.errors[kind]
        if count & (count - 1) == 0:  # 1, 2, 4, 8, …: whoever sends rubbish does not fill the log
            _log.warning("dropped (%s, %d so far): %s", kind, count, why)
