"""The device's end of its link, with signatures: nothing that the server's key has not signed reaches the agent.

Rules
- What the device sends to the server is signed; see edge_runtime.wire.envelope.
- A command is passed on if the pinned key signed it for this device and this boot, and its number is above all before.
  So a broker can hold messages back, and neither make, alter, repeat nor reorder them.
- A command that the server signed for another boot means that the server has not heard of this one: the agent is told
  that it is connected, and introduces itself again, at most every AGAIN_S.
"""

import logging
import secrets
import time
from collections import Counter as Tally
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_runtime.wire.counter import Counter
from edge_runtime.wire.envelope import BOOT_BYTES, Scope, open_command, seal_event
from edge_runtime.wire.errors import WireError
from edge_runtime.wire.link import Connected, Delivery, Event, Link
from edge_runtime.wire.topics import Topics

AGAIN_S = 10.0
_log = logging.getLogger(__name__)


class SignedDeviceLink:
    """A Link over another one, for one device. `code` is the one that it was enrolled with."""

    def __init__(
        self,
        link: Link,
        scope: Scope,
        *,
        key: Ed25519PrivateKey,
        code: bytes,
        server_key: Ed25519PublicKey,
        counter: Counter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refused: Tally[str] = Tally()
        """Numbers of commands that were not passed on, by reason."""
        self._link = link
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

    @property
    def bytes_in(self) -> int:
        """Bytes that were received."""
        return self._link.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes that were sent."""
        return self._link.bytes_out

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message, signed where it is for the server. Raises LinkFull."""
        if topic == self._event:
            payload = seal_event(
                self._key, self._scope, code=self._code, boot=self._boot, counter=self._counter.next(), body=payload
            )
        self._link.publish(topic, payload, retain=retain)

    def subscribe(self, *filters: str) -> None:
        """Subscribe."""
        self._link.subscribe(*filters)

    def unsubscribe(self, *filters: str) -> None:
        """End subscriptions."""
        self._link.unsubscribe(*filters)

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event; None if there is none, or it was a command that is not to be believed."""
        event = self._link.receive(timeout_s)
        if not isinstance(event, Delivery) or event.topic != self._command:
            return event
        try:
            opened = open_command(self._server_key, self._scope, event.payload)
        except WireError as exc:
            self._refuse("forged", str(exc))
            return None
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
        return Delivery(event.topic, opened.body)

    def interrupt(self) -> None:
        """Let `receive` return."""
        self._link.interrupt()

    def close(self) -> None:
        """Disconnect."""
        self._link.close()

    def _refuse(self, kind: str, why: str) -> None:
        self.refused[kind] += 1
        count = self.refused[kind]
        if count & (count - 1) == 0:  # 1, 2, 4, 8, …: a flood of them does not fill the log
            _log.warning("a command was not taken (%s, %d so far): %s", kind, count, why)
