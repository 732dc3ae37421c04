"""The broker's rules on who may connect and use a topic.

A device's client id and user name must both be its token's subject. A server's token is good for any client id that
is its subject, or begins with it and a slash, so that a monitor need not take over the server's own session.
"""

# coverage: every branch

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_runtime.wire import tokens, topics
from edge_runtime.wire.errors import TokenRefused


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The owner of a connection. After `valid_for_s` seconds it is closed; None: never."""

    name: str
    role: str
    valid_for_s: float | None
    generation: int = 0
    """The generation of its enrolment."""


class Authorizer(Protocol):
    """Decides for the broker. A Protocol, so that the broker knows nothing of tokens."""

    def authenticate(self, client_id: str, username: str | None, password: bytes | None) -> Principal:
        """Return the principal behind a CONNECT. Raises TokenRefused."""
        ...

    def may_stay(self, principal: Principal) -> bool:
        """Return whether a connection may go on: its owner has not been revoked since."""
        ...

    def may_publish(self, principal: Principal, topic: str) -> bool:
        """Return whether a message may go to `topic`."""
        ...

    def may_subscribe(self, principal: Principal, topic_filter: str) -> bool:
        """Return whether `topic_filter` may be subscribed to."""
        ...


class TokenAuthorizer:
    """Authorizer by the tokens and topics of one federation.

    `now` gives seconds since the epoch: it is only needed to tell how much of a token's life is left. `is_current` says
    whether a device's enrolment is the present one; without it every token is. `on_login` hears of each attempt, with
    the reason where it was refused.
    """

    def __init__(
        self,
        key: Ed25519PublicKey,
        federation: str,
        *,
        now: "Clock",
        is_current: Callable[[str, int], bool] = lambda _name, _generation: True,
        on_login: Callable[[str, str | None], None] = lambda _name, _why: None,
    ) -> None:
        self._key = key
        self._federation = federation
        self._now = now
        self._is_current = is_current
        self._on_login = on_login

    def authenticate(self, client_id: str, username: str | None, password: bytes | None) -> Principal:
        """Check the token in `password` and that the client id and user name are its bearer's. Raises TokenRefused."""
        try:
            principal = self._checked(client_id, username, password)
        except TokenRefused as exc:
            self._on_login(client_id, str(exc))
            raise
        self._on_login(principal.name, None)
        return principal

    def _checked(self, client_id: str, username: str | None, password: bytes | None) -> Principal:
        claims = tokens.check(self._key, password, federation=self._federation)
        is_own = client_id == claims.sub or (claims.role == "server" and client_id.startswith(f"{claims.sub}/"))
        if username != claims.sub or not is_own:
            raise TokenRefused(f"the token of {claims.sub!r} is used by another name: both names must be its own")
        left_s = claims.exp - self._now()
        principal = Principal(name=claims.sub, role=claims.role, valid_for_s=left_s, generation=claims.gen)
        if not self.may_stay(principal):
            raise TokenRefused(f"{claims.sub!r} was revoked, or has been enrolled again since")
        return principal

    def may_stay(self, principal: Principal) -> bool:
        """Return whether the token's bearer is enrolled as it was when the token was made."""
        return principal.role == "server" or self._is_current(principal.name, principal.generation)

    def may_publish(self, principal: Principal, topic: str) -> bool:
        """Return whether the token's bearer may publish to `topic`."""
        return topics.may_publish(self._federation, principal.role, principal.name, topic)

    def may_subscribe(self, principal: Principal, topic_filter: str) -> bool:
        """Return whether the token's bearer may subscribe to `topic_filter`."""
        return topics.may_subscribe(self._federation, principal.role, principal.name, topic_filter)


class Clock(Protocol):
    """Seconds since the epoch, as time.time."""

    def __call__(self) -> float:
        """Return the present time."""
        ...
