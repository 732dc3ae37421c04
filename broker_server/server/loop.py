"""The aggregator: a short loop that hears the link and does what the coordinator and the transfers say.

Rules
- A bad message is counted, logged and dropped; nothing that a device sends can stop the loop.
- What is said waits where the link is full (outgoing.py); it is bounded, and what is lost there is asked for again.
- A result is journalled before it is acknowledged, and a round before its plans are sent.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from broker_server.grouping.search import SplitImpossible
from broker_server.rounds.actions import Abandon, Action, Close, FetchUpdate, Note, Opened, Record, Result, Send, Work
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.encoder_process import EncoderSupervisor, EncoderUnavailable
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal, RoundRow
from broker_server.rounds.ort_training_process import ArtifactBuilder, ArtifactsUnavailable, asking, failure
from broker_server.server.outgoing import Outgoing
from broker_server.server.transfers import ServedBlobs, Uploads
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.errors import BlobInvalid, MessageInvalid, TensorsInvalid, TopicInvalid
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Link
from edge_runtime.wire.messages import (
    Evaluation,
    FinalEnergy,
    Hello,
    Need,
    Progress,
    Refusal,
    Update,
    decode_device,
    decode_status,
    encode,
)
from edge_runtime.wire.names import Tasks, group_id
from edge_runtime.wire.topics import Address, Topics

_LOG = logging.getLogger(__name__)
TICK_S = 0.25
UNMADE = "this server makes none of groups that it decides, because no --official-python was given"


class BrokerRefused(RuntimeError):
    """The broker does not take the server's connection, and will not."""


class Watcher(Protocol):
    """A seam for people who watch: a live view, quiet lines or nothing."""

    def note(self, text: str) -> None:
        """Something worth reading has happened."""
        ...

    def closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """A round has closed."""
        ...

    def refresh(self, aggregator: "Aggregator") -> None:
        """Some time has passed."""
        ...


class Aggregator:
    """One federation's server over a link. Runs no rounds until it is given a federation."""

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        journal: FederationJournal,
        blobs: BlobStore,
        coordinator: Coordinator,
        watcher: Watcher,
        maker: ArtifactBuilder | None = None,
        host: EncoderSupervisor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._topics = topics
        self._journal = journal
        self._blobs = blobs
        self.coordinator = coordinator
        self._watcher = watcher
        self._maker = maker
        self._host = host
        self._making: tuple[Tasks, ...] = ()
        self._missed: set[Tasks] = set()
        self._clock = clock
        self.federation: Federation | None = None
        self.work: Work | None = None
        """The round that is going on or waits for devices."""
        self.finished: str | None = None
        """How the federation ended, once it has."""
        self.failed = False
        """Whether it ended before its time."""
        self.energies = 0
        """How often a device has said what a plan has cost in the end; it may do so after the last round."""
        self._downloads = ServedBlobs()
        self._uploads = Uploads(blobs)
        self._outgoing = Outgoing(link, topics, blobs)
        self._bytes_up: int | None = 0
        self._exchanged_down: int | None = 0
        self._ticked_s = float("-inf")
        self._dropped: Counter[str] = Counter()
        link.subscribe(*topics.from_devices())

    @property
    def counts(self) -> dict[str, int]:
        """What was dropped or declined, by reason."""
        parts = (self.coordinator, self._uploads, self._downloads, self._outgoing)
        return dict(sum((part.counts for part in parts), self._dropped))

    @property
    def quiet(self) -> bool:
        """Whether everything that there was to say has been handed to the link."""
        return self._outgoing.is_empty

    @property
    def making(self) -> tuple[Tasks, ...]:
        """The groups whose official artifacts the next round waits for."""
        return self._making

    def run(self, federation: Federation) -> None:
        """Begin a federation, or go on with it where the journal stands."""
        self.federation = federation
        self._downloads.offer(*federation.graphs)
        self._next()
        open_round = self.work is not None and federation.begun(self.work) is not None
        federation.sweep(partial=not open_round)

    def step(self, timeout_s: float) -> None:
        """Take one event from the link, if one comes in time, and do what follows from it and from the clock.

        Raises BrokerRefused.
        """
        self._outgoing.flush()
        event = self._link.receive(min(timeout_s, TICK_S))
        if isinstance(event, Delivery):
            self._hear(event)
        elif isinstance(event, Disconnected):
            if event.refused:
                raise BrokerRefused(f"the broker refused the server: {event.reason}")
            self._outgoing.lost()
            self.note(f"the connection to the broker is lost: {event.reason}")
        elif isinstance(event, Connected):
            _LOG.info("connected to the broker")
        self._hear_host()
        now_s = self._clock()
        if now_s - self._ticked_s >= TICK_S:
            self._ticked_s = now_s
            for device, need in self._uploads.tick(now_s):
                self._outgoing.message(device, encode(need))
            self._outgoing.chunks(self._downloads.tick(now_s))
            self._do(self.coordinator.tick(now_s))
            self._make(now_s)
            self._watcher.refresh(self)
        self._outgoing.flush()

    def _hear(self, delivery: Delivery) -> None:
        try:
            match self._topics.parse(delivery.topic):
                case Address(device=str(device), kind="status"):
                    online = decode_status(delivery.payload).state == "online"
                    self._do(self.coordinator.status(device, online=online, now_s=self._clock()))
                case Address(device=str(device), kind="event"):
                    self._message(device, delivery.payload)
                case Address(device=str(device), kind="up"):
                    self._tell_host(device, delivery.payload)
                case Address(device=str(device), kind="blob", digest=str(digest), index=int(index)):
                    self._chunk(device, digest, index, delivery.payload)
                case _:
                    self._dropped["message that is not for the server"] += 1
        except (TopicInvalid, MessageInvalid) as exc:
            self._dropped[type(exc).__name__] += 1
            number = self._dropped[type(exc).__name__]
            if number & (number - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a flood of them does not fill the log
                _LOG.warning("dropped a message on %.200s (%d so far): %s", delivery.topic, number, exc)

    def _message(self, device: str, payload: bytes) -> None:
        now_s = self._clock()
        match decode_device(payload):
            case Hello() as hello:
                self._hello(device, hello)
            case Need() as need:
                self._outgoing.chunks(self._downloads.need(device, need, now_s))
            case Progress() as progress:
                self.coordinator.progress(device, progress)
            case Refusal() as refusal:
                self._do(self.coordinator.refusal(device, refusal, now_s))
            case Update() as update:
                self._do(self.coordinator.update(device, update, now_s))
            case Evaluation() as evaluation:
                self._do(self.coordinator.evaluation(device, evaluation, now_s))
            case FinalEnergy() as spent if self._journal.set_energy(spent, device):
                self.energies += 1
            case FinalEnergy():
                self._dropped["energy of a round that the device was not in"] += 1

    def _hello(self, device: str, hello: Hello) -> None:
        self._downloads.came(device)
        self._uploads.came(device)
        known = self.coordinator.devices.get(device)
        if known is None or known.hello != hello:
            self._journal.set_hello(device, hello)
            online = len({*self.coordinator.online, device})
            self.note(f"{device} has joined: {online} online, a round needs {self.coordinator.needed}")
            if hello.ort_training != "off" and self._maker is None:
                self.note(f"{device} asks for official artifacts: {UNMADE}")
        self._do(self.coordinator.hello(device, hello, self._clock()))

    def _tell_host(self, device: str, piece: bytes) -> None:
        """A device at work said something to the host of the general model."""
        if self._host is None or not self.coordinator.is_asked(device):
            self._dropped["piece that nobody asked for"] += 1
            return
        assert self.federation is not None
        assert self.work is not None
        self.exchanged(up_bytes=len(piece))
        try:
            if not self._host.hear(self.federation.open(self.work), device, piece):
                self._dropped["piece that the host had no room for"] += 1
        except EncoderUnavailable as exc:
            self._give_up(str(exc))

    def _hear_host(self) -> None:
        """Take what the host of the general model says, while devices take what it has said before."""
        if self._host is None or not self._outgoing.takes_pieces:
            return
        try:
            said = self._host.poll()
        except EncoderUnavailable as exc:
            self._give_up(str(exc))
            return
        for device, piece in said:
            self.exchanged(down_bytes=len(piece))
            self._outgoing.piece(device, piece)

    def exchanged(self, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """So much of the round that is going on has crossed between devices and the host of the general model."""
        if self._bytes_up is not None:
            self._bytes_up += up_bytes
        if self._exchanged_down is not None:
            self._exchanged_down += down_bytes

    def _give_up(self, why: str) -> None:
        self.failed = True
        self._finish(f"the federation cannot go on: {why}")

    def _chunk(self, device: str, digest: str, index: int, data: bytes) -> None:
        if self._bytes_up is not None:
            self._bytes_up += len(data)
        try:
            whole, need = self._uploads.chunk(device, digest, index, data, self._clock())
        except BlobInvalid as exc:
            self._do(self.coordinator.rejected(device, str(exc), self._clock()))
            return
        self._fetching(device, whole, need)

    def _fetching(self, device: str, whole: bool, need: Need | None) -> None:
        """An upload goes on: ask for more of it, or take what is here."""
        if need is not None:
            self._outgoing.message(device, encode(need))
        if whole:
            self._whole(device)

    def _whole(self, device: str) -> None:
        """A device's announced weights are here: check them, then count them."""
        current = self.coordinator.open
        assert current is not None
        assert self.federation is not None
        update = current.results[device]
        assert isinstance(update, Update)
        try:
            self.federation.check_update(current.work, device, update)
        except TensorsInvalid as exc:
            if update.weights.digest != current.work.weights.digest:
                self._blobs.discard(update.weights.digest)
            self._do(self.coordinator.rejected(device, str(exc), self._clock()))
        else:
            self._do(self.coordinator.received(device, self._clock()))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Opened(round=_, members=members, quorum=quorum):
                    assert self.work is not None
                    self._journal.open_round(self.work.assignment, members, quorum)
                case Send(device=device, message=message):
                    self._outgoing.message(device, encode(message))
                case FetchUpdate(device=device, update=update):
                    self._fetching(device, *self._uploads.begin(device, update.weights, self._clock()))
                case Abandon(device=device):
                    self._uploads.abandon(device)
                case Record(device=device, result=result):
                    self._journal.add_result(result.round, device, result)
                case Close(devices=devices):
                    self._close(devices)
                case Note(text=text):
                    self.note(text)

    def _close(self, devices: tuple[str, ...]) -> None:
        assert self.federation is not None
        assert self.work is not None
        results = self.federation.close(
            self.work, devices, bytes_up=self._bytes_up, exchanged_down=self._exchanged_down
        )
        row = self.federation.begun(self.work)
        assert row is not None
        self._downloads.withdraw(self.work.weights.digest)
        self._watcher.closed(row, results)
        self._next()

    def _next(self) -> None:
        """Offer the next round, or the one that was open when an earlier process ended."""
        assert self.federation is not None
        now_s = self._clock()
        try:
            self.work = self.federation.next()
        except SplitImpossible as exc:
            self._give_up(str(exc))
            return
        if self.work is None:
            self._finish("all rounds are done")
            return
        self._downloads.offer(self.work.bundle, self.work.weights)
        begun = self.federation.begun(self.work)
        self._exchanged_down = 0
        if begun is None:
            self._bytes_up = 0
            self._begin(now_s)
            return
        self._bytes_up = None  # what came before the restart was not counted
        self._exchanged_down = 0 if self.work.apart is None else None
        results = self._journal.results(self.work.assignment.round)
        self.note(
            f"round {self.work.assignment.round} goes on: {len(results)} of {len(begun.members)} results are here"
        )
        offer = self.coordinator.offer(self.work, now_s, members=begun.members, quorum=begun.quorum, results=results)
        self._do(offer)

    def _begin(self, now_s: float) -> None:
        """Offer a round that nobody has begun, if need be after its phase's official artifacts have been made."""
        assert self.federation is not None
        assert self.work is not None
        lacking = [tasks for tasks in self.federation.lacking(self.work) if tasks not in self._missed]
        if lacking and asking(self.coordinator.devices)[0]:
            self._making = tuple(lacking)
            try:
                if self._maker is None:
                    raise ArtifactsUnavailable(UNMADE)  # noqa: TRY301
                self._maker.start(self.federation.bundle, self._making, now_s)
            except ArtifactsUnavailable as exc:
                self._miss(str(exc), now_s)
            else:
                self.note(f"making official artifacts for {', '.join(map(group_id, self._making))}")
        else:
            self._do(self.coordinator.offer(self.work, now_s))

    def _make(self, now_s: float) -> None:
        """See whether the official artifacts are ready, and go on with the round that waits for them."""
        if self._maker is None or self.federation is None or not self._making:
            return
        try:
            made = self._maker.poll(now_s)
        except ArtifactsUnavailable as exc:
            self._miss(str(exc), now_s)
            return
        if made is None:
            return
        self.federation.adopt(made)
        self._maker.stop()
        worst = max(each.artifacts.max_relative_error for each in made.values())
        self.note(
            f"official artifacts for {', '.join(map(group_id, made))} are within {worst:.1e} of the portable graphs"
        )
        self._making = ()
        self._downloads.offer(*self.federation.graphs)
        self._next()

    def _miss(self, problem: str, now_s: float) -> None:
        """There will be no official artifacts of some groups: go on, if enough devices can do without."""
        assert self.federation is not None
        assert self.work is not None
        missed, self._making = self._making, ()
        self._missed.update(missed)
        self.federation.miss(missed, problem)
        requiring = asking(self.coordinator.devices)[1]
        if len(self.coordinator.devices) - len(requiring) < self.coordinator.needed and requiring:
            self._give_up(failure(missed, problem, requiring))
            return
        self.note(failure(missed, problem, requiring))
        self._do(self.coordinator.offer(self.work, now_s))

    def _finish(self, detail: str) -> None:
        self.work = None
        self.finished = detail
        self.note(detail)
        self._do(self.coordinator.finish(detail[:500]))

    def note(self, text: str) -> None:
        """Journal something that people should read, and show it."""
        self._journal.note(text)
        self._watcher.note(text)
