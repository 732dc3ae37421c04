"""The device's end of its link, with signatures: nothing that the server's key has not signed reaches the agent.

Rules
- What the device sends to the server is signed; see edge_runtime.wire.envelope.
- A command is passed on if the pinned key signed it for this device and this boot, and its number is above all before.
  So a broker can hold messages back, and neither make, alter, repeat nor reorder them.
- A new key of the server's, signed by the trusted one, is trusted from then on, and said to `on_key`.
- A token or a certificate that the server has signed for this boot is said to `on_gift`.
- A command that the server signed for another boot means that the server has not heard of this one: the agent is told
  that it is connected, and introduces itself again, at most every AGAIN_S.
"""

import logging
import secrets
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_runtime.agent.identity import ServerKey
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.envelope import BOOT_BYTES, KEY_BYTES, CommandEnvelope, Gift, Scope, open_command, seal_event
from edge_runtime.wire.errors import MessageInvalid, SignatureInvalid
from edge_runtime.wire.link import Connected, Delivery, Event, Link, PassingLink
from edge_runtime.wire.topics import Topics

AGAIN_S = 10.0
_log = logging.getLogger(__name__)


class SignedDeviceLink(PassingLink):
    """A Link over another one, for one device. `code` is the one that it was enrolled with."""

    def __init__(
        self,
        link: Link,
        scope: Scope,
        *,
        key: Ed25519PrivateKey,
        code: bytes,
        server_key: ServerKey,
        counter: Counter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(link)
        self.refused: Tally[str] = Tally()
        """Numbers of commands that were not passed on, by reason."""
        self.on_key: Callable[[str], None] = lambda _key: None
        self.on_gift: Mapping[Gift, Callable[[bytes], None]] = {}
        """What keeps a token or a certificate; others are left."""
        self._scope = scope
        self._key = key
        self._code = code
        self._server_key = server_key
        self._counter = counter
        self._clock = clock
        self._boot = secrets.token_bytes(BOOT_BYTES)
        self._last = -1
        self._introduced_s = float("-inf")
        topics = Topics(scope.federation)
        self._event, self._command = topics.event(scope.device), topics.command(scope.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._link!r})"

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message, signed where it is for the server. Raises LinkFull."""
        if topic == self._event:
            payload = seal_event(
                self._key, self._scope, code=self._code, boot=self._boot, counter=self._counter.next(), body=payload
            )
        super().publish(topic, payload, retain=retain)

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event; None if there is none, or it was a command that is not to be believed."""
        event = super().receive(timeout_s)
        if not isinstance(event, Delivery) or event.topic != self._command:
            return event
        trusted = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self._server_key.hex))
        try:
            return self._taken(open_command(trusted, self._scope, event.payload))
        except SignatureInvalid as exc:
            if not any(self._took_gift(trusted, event.payload, gift) for gift in self.on_gift):
                self._take_key(trusted, event.payload, exc)
        except MessageInvalid as exc:
            self._refuse("forged", str(exc))
        return None

    def _taken(self, opened: CommandEnvelope) -> Event | None:
        """Return the command of an envelope whose signature is good, if it is for this boot and new."""
        if opened.boot != self._boot:
            now_s = self._clock()
            if now_s - self._introduced_s < AGAIN_S:
                self._refuse("of another boot", "the server has signed it for an earlier process")
                return None
            self._introduced_s = now_s
            return Connected()
        if opened.counter <= self._last:
            self._refuse("repeated", "a command with this number, or a later one, has come before")
            return None
        self._last = opened.counter
        return Delivery(self._command, opened.body)

    def _took_gift(self, trusted: Ed25519PublicKey, payload: bytes, gift: Gift) -> bool:
        """Return whether an envelope that is no command has this gift of the server's; keep one for this boot."""
        try:
            opened = open_command(trusted, self._scope, payload, gift)
        except SignatureInvalid:
            return False
        if opened.boot == self._boot and self._taken(opened) is not None:
            self.on_gift[gift](opened.body)
        return True

    def _take_key(self, trusted: Ed25519PublicKey, payload: bytes, forged: SignatureInvalid) -> None:
        """Trust the key in an envelope that is no command, if the trusted one signed it as its heir, for this boot."""
        key = payload[-KEY_BYTES:].hex()
        if self._server_key.knows(key):  # the server names it with each boot
            return
        try:
            opened = open_command(trusted, self._scope, payload, b"new key")
        except SignatureInvalid:
            self._refuse("forged", str(forged))
            return
        if opened.boot != self._boot or len(opened.body) != KEY_BYTES or self._taken(opened) is None:
            return
        self._server_key.change(key)
        self.on_key(key)
        _log.warning("the server has a new key: %s…", key[:16])

    def _refuse(self, kind: str, why: str) -> None:
        self.refused[kind] += 1
        count = self.refused[kind]
        if count & (count - 1) == 0:  # 1, 2, 4, 8, …: a flood of them does not fill the log
            _log.warning("a command was not taken (%s, %d so far): %s", kind, count, why)
