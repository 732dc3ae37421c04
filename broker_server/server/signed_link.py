"""The server's end of its link, with signatures: what no enrolled device's key has signed does not reach the server.

Rules
- What the server sends to a device is signed for the device's last boot; see edge_runtime.wire.envelope.
- An event is passed on if its device is enrolled and not revoked, its key signed it, and its number is above all
  before. So the topic need not be believed: on a broker that checks nothing, nobody speaks for a device.
- A device that was enrolled before a key was retired is told of its heir, by the retired key, with each of its boots.
- The first key that comes with the enrolment's code is the device's. Another one is refused and named: a second card
  was made of the same file.
- A device whose signature was good is given what `renewals` have for it.
- Two boots of one key that take turns are two cards with one state folder: that is named, and by choice both are locked
  out.
"""

import contextlib
import hmac
import logging
import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.server.enrolments import Enrolment, Enrolments, Seen
from broker_server.server.keys import RetiredKey
from broker_server.server.receipts import Receipts
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.envelope import NO_BOOT, EventEnvelope, Gift, Scope, check_event, read_event, seal_command
from edge_runtime.wire.errors import SignatureInvalid, TopicInvalid, WireError
from edge_runtime.wire.link import Delivery, Event, Link, LinkFull, PassingLink
from edge_runtime.wire.messages import Status, encode
from edge_runtime.wire.topics import Topics

_LOG = logging.getLogger(__name__)
MAX_BOOTS = 64


@dataclass
class _Heard:
    """The last boot of a device and its last number, and the boots before it, since this process began."""

    generation: int
    boot: bytes
    counter: int
    earlier: dict[bytes, None] = field(default_factory=dict)


class Renewal(Protocol):
    """What a device gets again and again, for the proof of its key. A Protocol: tokens are for our own broker alone."""

    @property
    def gift(self) -> Gift:
        """What it is."""
        ...

    def after_proof(self, device: str, generation: int, boot: bytes, key: bytes) -> str | None:
        """Return one for a device that has signed a message with `key`, if it is time for one."""
        ...


class SignedServerLink(PassingLink):
    """A Link over another one. `note` is for what people should read; set it when there is a place for it."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        *,
        key: Ed25519PrivateKey,
        enrolments: Enrolments,
        counter: Counter,
        retired: Sequence[RetiredKey] = (),
        lock_out_clones: bool = False,
        renewals: Sequence[Renewal] = (),
        receipts: Receipts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(link)
        self.refused: Tally[str] = Tally()
        """Numbers of events that were not passed on, by reason."""
        self.note: Callable[[str], None] = _LOG.warning
        self.refuse: Callable[[str, str], None] = lambda who, why: _LOG.warning("refused %s: %s", who, why)
        """Hears of each event that is not passed on: whose it was or said to be, and why. Set it as `note`."""
        self._topics = topics
        self._key = key
        self._enrolments = enrolments
        self._counter = counter
        self._retired = retired
        self._lock_out_clones = lock_out_clones
        self._renewals = renewals
        self._receipts = receipts
        self._clock = clock
        self._heard: dict[str, _Heard] = {}
        self._noted: Tally[tuple[str, str]] = Tally()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message, signed where it is a command for a device. Raises LinkFull."""
        address = self._topics.parse(topic)
        if address.kind == "command":
            if self._receipts is not None:
                self._receipts.answered(address.device, payload)
            heard = self._heard_of(address.device)
            payload = seal_command(
                self._key,
                self._scope(address.device),
                boot=NO_BOOT if heard is None else heard.boot,
                counter=self._counter.next(),
                body=payload,
            )
        super().publish(topic, payload, retain=retain)

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event; None if there is none, or it was a device's that is not to be believed."""
        event = super().receive(timeout_s)
        if not isinstance(event, Delivery):
            return event
        try:
            address = self._topics.parse(event.topic)
        except TopicInvalid:
            return event  # the dispatcher counts it
        return self._believed(event, address.device, address.kind)

    def _opened(self, device: str, found: Enrolment, payload: bytes) -> bytes | None:
        """Return an event's message; None for one that came before. Raises MessageInvalid, SignatureInvalid."""
        event, scope = read_event(payload), self._scope(device)
        if found.key is None:
            self._check_code(found, event, scope)
        elif event.key.hex() != found.key:
            raise SignatureInvalid(
                "its key is not the one of its enrolment: it lost its state folder, or is another card of the same "
                f"file; enrol {device} again"
            )
        check_event(event, scope)
        if found.key is None and not self._enrolments.pin(device, found.generation, event.key.hex()):
            raise SignatureInvalid("it has been enrolled again meanwhile")
        heard = self._heard_of(device)
        if heard is not None and event.counter <= heard.counter:
            self._refuse(
                device,
                "event that came before",
                "a message is older than what came before: it was repeated, or the device is two cards",
            )
            return None
        self._hear(device, found, event, heard)
        if self._receipts is not None:
            self._receipts.heard(device, payload, event.body)
        self._renew(device, found, event)
        return event.body

    def _believed(self, event: Delivery, device: str, kind: str) -> Event | None:
        """Return a device's message if it is to be believed, an event out of its envelope."""
        found = self._enrolments.find(device)
        if found is None:
            self._refuse(device, "device that is not enrolled", "it is not enrolled here")
            return None
        if found.revoked:
            return self._refuse_revoked(device)
        if kind != "event":
            return event
        try:
            body = self._opened(device, found, event.payload)
        except WireError as exc:
            self._refuse(device, "event that is not signed", str(exc))
            return None
        return None if body is None else Delivery(event.topic, body)

    def _refuse_revoked(self, device: str) -> Event | None:
        """Refuse a message of a device that was revoked; the first one says that it is gone."""
        self._refuse(device, "device that is revoked", f"it was revoked: `enrol {device}` lets it in again")
        if self._heard.pop(device, None) is None:
            return None
        return Delivery(self._topics.status(device), encode(Status(state="offline")))

    def _check_code(self, found: Enrolment, event: EventEnvelope, scope: Scope) -> None:
        if not hmac.compare_digest(event.proof, scope.proof(bytes.fromhex(found.code), event.key)):
            raise SignatureInvalid("its code is not the one of its enrolment")
        if self._clock() > found.code_until_s:
            raise SignatureInvalid("its code has expired before its first message: enrol it again")

    def _hear(self, device: str, found: Enrolment, event: EventEnvelope, heard: _Heard | None) -> None:
        if heard is not None and event.boot == heard.boot:
            heard.counter = event.counter
            return
        earlier = {} if heard is None else heard.earlier
        if event.boot in earlier:
            self._say(
                device,
                "clone",
                f"{device} is two cards that take turns with one key, for one was copied: enrol {device} again",
            )
            if self._lock_out_clones:
                self._enrolments.revoke(device)
        if heard is not None:
            earlier[heard.boot] = None
            while len(earlier) > MAX_BOOTS:
                del earlier[next(iter(earlier))]
        self._heard[device] = _Heard(found.generation, event.boot, event.counter, earlier)
        self._enrolments.set_seen(device, Seen(boot=event.boot.hex(), counter=event.counter))
        self._name_heirs(device, found, event.boot)

    def _name_heirs(self, device: str, found: Enrolment, boot: bytes) -> None:
        """Tell a device that has started of the keys that took the place of the one that it was enrolled with."""
        for each in self._retired:
            if each.retired_s < found.enrolled_s:
                continue
            counter = self._counter.next()
            payload = seal_command(
                each.key, self._scope(device), boot=boot, counter=counter, body=each.heir, purpose=b"new key"
            )
            try:
                self._link.publish(self._topics.command(device), payload)
            except LinkFull:  # it is told with its next boot, and takes no command before
                return

    def _renew(self, device: str, found: Enrolment, event: EventEnvelope) -> None:
        """Give a device whose signature was good what it is time for."""
        scope = self._scope(device)
        for each in self._renewals:
            given = each.after_proof(device, found.generation, event.boot, event.key)
            if given is None:
                continue
            counter, body = self._counter.next(), given.encode()
            payload = seal_command(self._key, scope, boot=event.boot, counter=counter, body=body, purpose=each.gift)
            with contextlib.suppress(LinkFull):  # it asks again
                self._link.publish(self._topics.command(device), payload)

    def _heard_of(self, device: str) -> _Heard | None:
        """Return what was heard of a device in its present enrolment, by this process or an earlier one."""
        found = self._enrolments.find(device)
        if found is None:
            return None
        heard = self._heard.get(device)
        if heard is not None and heard.generation == found.generation:
            return heard
        seen = self._enrolments.seen(device)
        if seen is None:
            return None
        heard = self._heard[device] = _Heard(found.generation, bytes.fromhex(seen.boot), seen.counter)
        return heard

    def _scope(self, device: str) -> Scope:
        return Scope(federation=self._topics.federation, device=device)

    def _refuse(self, device: str, kind: str, why: str) -> None:
        self.refused[kind] += 1
        self.refuse(device, why)

    def _say(self, device: str, kind: str, why: str) -> None:
        """Say it the 1st, 8th, 64th … time: a flood of them fills no log."""
        self._noted[device, kind] += 1
        count = self._noted[device, kind]
        if count & (count - 1) == 0 and count.bit_length() % 3 == 1:
            self.note(why)
