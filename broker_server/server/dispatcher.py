"""The dispatcher: passes what devices send to the part of the server that it concerns, and carries out what that wants.

Rules
- A bad message is counted, logged and dropped; nothing that a device sends can stop the server. What follows from a
  message is done in `_handled` alone: whatever fails there costs its device the round, and is journalled. Only the
  journal's own failures go on from there, because nothing may be acknowledged that is not in it.
- What a device may have written to journal and log is bounded by an allowance, and its messages wait their turn with
  those of others (mqtt/fair_queue.py).
- A round is closed between two events, so that what fails there is never taken for a device's fault.
- Outgoing messages wait where the link is full (outgoing.py). They are bounded, and devices ask again for what is lost.
- A result is journalled before it is acknowledged, those that the disk has taken meanwhile in one transaction, and a
  round before its plans are sent.
- What concerns the round that is open goes to the handler, which the server's loop sets. There are no such events
  without an open round: devices may connect before there is a bundle, and are then asked for nothing.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import msgspec

from broker_server.rounds.actions import Abandon, Action, Close, FetchUpdate, Learned, Note, Opened, Record, Send
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.journal import LEARNT, UPLOAD_RATES, FederationJournal, JournalInvalid, JournalUnwritable
from broker_server.server.allowance import Allowance
from broker_server.server.outgoing import Outgoing
from broker_server.server.run_writer import RunWriter, Write
from broker_server.server.transfers import FIRST_PROBES, ServedBlobs, Uploads
from devices.cli.text import MAX_SHOWN, printable
from edge_runtime.wire.blob import MESSAGE_BYTES, BlobStore
from edge_runtime.wire.errors import BlobInvalid, MessageInvalid, TopicInvalid, WireError, reason
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Link
from edge_runtime.wire.messages import (
    Evaluation,
    FinalEnergy,
    Hello,
    LossProbe,
    Need,
    Progress,
    Refusal,
    RollCall,
    Update,
    decode_device,
    decode_status,
    encode,
)
from edge_runtime.wire.pace import halved
from edge_runtime.wire.topics import Address, Topics

_LOG = logging.getLogger(__name__)
TICK_S = 0.25
NO_BUILDER = "this server makes none for groups that it decides on: ort_training.python is not set"


class BrokerRefused(RuntimeError):
    """The broker does not take the server's connection, and will not."""


@dataclass(frozen=True, kw_only=True)
class UpdateComplete:
    """The update that a member of the open round has announced is here."""

    device: str


@dataclass(frozen=True, kw_only=True)
class FragmentReceived:
    """A member of the open round has sent a fragment of a message to the encoder server."""

    device: str
    fragment: bytes


RoundEvent = Close | UpdateComplete | FragmentReceived


def _unexpected(event: RoundEvent) -> None:
    raise AssertionError(f"{event} without an open round")


class Dispatcher:
    """The server's end of its link to the devices. `show` is for notes that people should read."""

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        journal: FederationJournal,
        blobs: BlobStore,
        uploads: DeviceUploads,
        coordinator: Coordinator,
        show: Callable[[str], None],
        builds_artifacts: bool = False,
        chunk_bytes: int = MESSAGE_BYTES,
        writer: RunWriter | None = None,
        enrolled: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        """Call the roll of `enrolled` devices and of those known; without a `writer` runs are written at once.

        Simulations `draw` no number by chance.
        """
        self.journal = journal
        self.blobs = blobs
        self.uploads = uploads
        self.coordinator = coordinator
        self.clock = clock
        self.handler: Callable[[RoundEvent], None] = _unexpected
        self.served = ServedBlobs()
        self.served.most_bytes = chunk_bytes
        self.outgoing = Outgoing(link, topics, blobs, self.served, clock)
        self.energy_reports = 0
        """Reports of a plan's energy from devices; they may come after the last round."""
        self._link = link
        self._topics = topics
        self._show = show
        self._builds_artifacts = builds_artifacts
        self._enrolled = enrolled
        self._uploads = Uploads(uploads, writer=writer, first_probe=draw(FIRST_PROBES), rates=journal.upload_rates())
        self._rates = self._uploads.rates()
        self._close: Close | None = None
        self._hellos = Allowance(burst=20, per_s=0.2)
        self._energies = Allowance(burst=200, per_s=20)
        self._ticked_s = float("-inf")
        self._dropped: Counter[str] = Counter()
        link.subscribe(*topics.from_devices())

    @property
    def counts(self) -> Counter[str]:
        """Numbers of messages that were dropped or declined, by reason."""
        parts = (self.coordinator, self._uploads, self.served, self.outgoing)
        return sum((part.counts for part in parts), self._dropped)

    def note(self, text: str) -> None:
        """Journal a text that people should read, and show it."""
        shown = printable(text, MAX_SHOWN)
        self.journal.note(shown)
        self._show(shown)

    def count_dropped(self, reason: str) -> None:
        """Count something that was dropped."""
        self._dropped[reason] += 1

    def receive(self, timeout_s: float) -> None:
        """Take one event from the link, if one comes in time, and do what follows from it. Raises BrokerRefused."""
        self.outgoing.flush()
        self._close_round()
        event = self._link.receive(min(timeout_s, TICK_S))
        if isinstance(event, Delivery):
            self._dispatch(event)
            self._close_round()
        elif isinstance(event, Disconnected):
            if event.refused:
                raise BrokerRefused(f"the broker refused the server: {event.reason}")
            self.note(f"the connection to the broker is lost: {event.reason}")
            if event.too_large_bytes is not None:
                self.served.most_bytes = halved(event.too_large_bytes)
                self.note(
                    f"the broker cuts the connection on a message of {event.too_large_bytes} bytes: at most "
                    f"{self.served.most_bytes} bytes of a file go in one from now on (chunk_bytes)"
                )
        elif isinstance(event, Connected):
            _LOG.info("connected to the broker")
            self._call_roll()
        self._take_written()

    def _take_written(self) -> None:
        """Take what has come of runs that were written. What follows is journalled together, before it is sent."""
        if written := self._uploads.written(self.clock()):
            with self.journal.together():
                for write in written:
                    self._handled(write.device, partial(self._on_written, write))
            self._close_round()

    def _call_roll(self) -> None:
        """Ask who is there: what was said while there was no connection may be lost, and no broker need remember it."""
        for device in sorted({*self._enrolled(), *self.coordinator.devices}):
            self.outgoing.message(device, encode(RollCall()))
            self._uploads.on_connected(device)

    def tick(self) -> bool:
        """Do what is due by the clock, every TICK_S; return whether it was due."""
        now_s = self.clock()
        if now_s - self._ticked_s < TICK_S:
            return False
        self._ticked_s = now_s
        for device, request in self._uploads.tick(now_s):
            self.outgoing.message(device, encode(request))
        self.do(self.coordinator.tick(now_s))
        self._close_round()
        return True

    def do(self, actions: list[Action]) -> None:
        """Carry out the coordinator's actions in order."""
        for action in actions:
            match action:
                case Opened(round=opened, members=members, quorum=quorum, asked=asked):
                    self.journal.open_round(opened, members, quorum, asked)
                case Send(device=device, message=message):
                    self.outgoing.message(device, encode(message))
                case FetchUpdate(device=device, update=update):
                    is_complete, requests = self._uploads.begin(device, update.weights, self.clock())
                    self._go_on(device, is_complete=is_complete, requests=requests)
                case Abandon(device=device):
                    self._uploads.abandon(device)
                case Record(round=number, device=device, result=result):
                    self.journal.add_result(number, device, result)
                case Close():
                    self._close = action
                case Learned(learnt=learnt):
                    self.journal.set_fact(LEARNT, msgspec.json.encode(learnt).decode())
                case Note(text=text):
                    self.note(text)

    def _close_round(self) -> None:
        """Hand over the rounds that have what they need, if closing one does not leave it open again."""
        while self._close is not None:
            due, self._close = self._close, None
            self._keep_rates()
            self.handler(due)

    def _keep_rates(self) -> None:
        """Journal how fast devices' lines are, if that has changed: later processes begin with windows that fit."""
        rates = self._uploads.rates()
        if rates != self._rates:
            self._rates = rates
            self.journal.set_fact(UPLOAD_RATES, msgspec.json.encode(rates).decode())

    def _dispatch(self, delivery: Delivery) -> None:
        try:
            address = self._topics.parse(delivery.topic)
        except TopicInvalid as exc:
            self._drop(delivery.topic, exc)
            return
        self._handled(address.device, partial(self._on_delivery, address, delivery))

    def _handled(self, device: str, handle: Callable[[], None]) -> None:
        """Do what follows from a device's message. Whatever fails costs this device its round, and nobody else."""
        try:
            handle()
        except (JournalInvalid, JournalUnwritable):
            raise
        except OSError as exc:  # this machine's fault, perhaps a full disk: what is missing is asked for again
            if self._is_worth_a_line("message that this machine could not store"):
                self.note(f"what {device} sent could not be stored, and is asked for again: {exc.strerror or exc}")
        except Exception as exc:  # noqa: BLE001 - the one place that stands between a device and the server's life
            _LOG.exception("a message of %s could not be handled", device)
            self.count_dropped("message that could not be handled")
            why = f"what it sent could not be handled ({type(exc).__name__}: {reason(exc)})"
            self.do(self.coordinator.on_fault(device, why, self.clock()))

    def _on_delivery(self, address: Address, delivery: Delivery) -> None:
        device = address.device
        try:
            match address:
                case Address(kind="status"):
                    online = decode_status(delivery.payload).state == "online"
                    self.do(self.coordinator.on_status(device, online=online, now_s=self.clock()))
                case Address(kind="event"):
                    self._on_message(device, delivery.payload)
                case Address(kind="up"):
                    self._on_fragment(device, delivery.payload)
                case Address(kind="upload", digest=str(digest), index=int(index)):
                    self._on_run(device, digest, index, delivery.payload)
                case _:
                    self.count_dropped("message that is not for the server")
        except MessageInvalid as exc:
            self._drop(delivery.topic, exc)

    def _drop(self, topic: str, exc: WireError) -> None:
        if self._is_worth_a_line(type(exc).__name__):
            number = self._dropped[type(exc).__name__]
            _LOG.warning("dropped a message on %s (%d so far): %s", reason(topic), number, exc)

    def _is_worth_a_line(self, what: str) -> bool:
        """Count something that was dropped; return whether to say so: a flood of them does not fill the log."""
        self.count_dropped(what)
        number = self._dropped[what]
        return number & (number - 1) == 0  # the 1st, 2nd, 4th, 8th …

    def _on_message(self, device: str, payload: bytes) -> None:
        now_s = self.clock()
        message = decode_device(payload)
        if not isinstance(message, Hello):  # which says as much itself
            self._heard(device)
        match message:
            case Hello() as hello:
                self._on_hello(device, hello, now_s)
            case Need() | LossProbe() as request:
                self.served.on_request(device, request)
            case Progress() as progress:
                self.coordinator.on_progress(device, progress)
            case Refusal() as refusal:
                self.do(self.coordinator.on_refusal(device, refusal, now_s))
            case Update() as update:
                self.do(self.coordinator.on_update(device, update, now_s))
            case Evaluation() as evaluation:
                self.do(self.coordinator.on_evaluation(device, evaluation, now_s))
            case FinalEnergy() as spent:
                self._on_energy(device, spent, now_s)

    def _on_energy(self, device: str, spent: FinalEnergy, now_s: float) -> None:
        if not self._energies.take(device, now_s):
            self.count_dropped("energy beyond a device's allowance")
        elif self.journal.set_energy(spent, device):
            self.energy_reports += 1
        else:
            self.count_dropped("energy of a round that the device was not in")

    def _on_hello(self, device: str, hello: Hello, now_s: float) -> None:
        self._uploads.on_connected(device)
        known = self.coordinator.devices.get(device)
        if known is None or known.hello != hello:
            if not self._hellos.take(device, now_s):
                self.count_dropped("hello beyond a device's allowance")
                return
            online = len({*self.coordinator.online, device})
            with self.journal.together():
                self.journal.set_hello(device, hello)
                self.note(f"{device} has joined: {online} online, a round needs {self.coordinator.needed}")
                if hello.ort_training != "off" and not self._builds_artifacts:
                    self.note(f"{device} asks for ONNX Runtime training artifacts: {NO_BUILDER}")
        self.do(self.coordinator.on_hello(device, hello, now_s))

    def _heard(self, device: str) -> None:
        self.do(self.coordinator.on_heard(device, self.clock()))

    def _on_fragment(self, device: str, fragment: bytes) -> None:
        self._heard(device)
        if self.coordinator.is_asked(device):
            self.handler(FragmentReceived(device=device, fragment=fragment))
        else:
            self.count_dropped("fragment that nobody asked for")

    def _on_run(self, device: str, digest: str, index: int, data: bytes) -> None:
        if self.coordinator.open is not None:
            self.coordinator.open.traffic.add(up_bytes=len(data))
        self._heard(device)
        self._go_on(device, requests=self._uploads.on_run(device, digest, index, data, self.clock()))

    def _on_written(self, write: Write) -> None:
        if isinstance(write.fault, BlobInvalid):
            self.do(self.coordinator.on_update_rejected(write.device, str(write.fault), self.clock()))
        elif write.fault is not None:
            raise write.fault
        else:
            self._go_on(write.device, is_complete=True)

    def _go_on(self, device: str, *, is_complete: bool = False, requests: Iterable[Need | LossProbe] = ()) -> None:
        """Ask for more of an upload, or take what is here."""
        for request in requests:
            self.outgoing.message(device, encode(request))
        if is_complete:
            self.handler(UpdateComplete(device=device))
