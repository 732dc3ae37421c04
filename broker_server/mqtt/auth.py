"""The broker's rules on who may connect and use a topic.

A device's client id, if it gives one, and its user name must both be its token's subject. A server's token is good for
any client id that is its subject, or begins with it and a slash, so that a monitor need not take over the server's own
session.

Where tokens are renewed, a device whose token has expired, or is still the one of its enrolment although its key is
known, gets a limited connection: it may say what it signs and hear commands, so that it can prove its key and be given
a token. With that it connects again.

Where clients need certificates, a token is good only over a connection with the certificate of the same device and the
same enrolment: whoever has read a token somewhere has not the key.
"""

# coverage: every branch

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_runtime.wire import tokens, topics
from edge_runtime.wire.errors import TokenRefused

LIMITED_S = 20.0
"""How long a limited connection waits for its device's proof."""
LEAVE_S = 1.0
"""How long the new token has to arrive before the connection ends."""


@dataclass(frozen=True)
class Certified:
    """Whom the certificate of a connection is for: a device, and the generation of its enrolment."""

    name: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The owner of a connection. After `valid_for_s` seconds it is closed; None: never."""

    name: str
    role: str
    valid_for_s: float | None
    generation: int = 0
    """The generation of its enrolment."""
    is_limited: bool = False
    """It may ask for a token, and nothing else."""


class Authorizer(Protocol):
    """Decides for the broker. A Protocol, so that the broker knows nothing of tokens."""

    def authenticate(
        self, client_id: str, username: str | None, password: bytes | None, certified: Certified | None = None
    ) -> Principal:
        """Return the principal behind a CONNECT, over a connection with a certificate or none. Raises TokenRefused."""
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
    the reason where it was refused. With `life_s` devices' tokens are renewed, and no connection lasts longer;
    `has_key` says whether a device's key is known. With `needs_certificate` a token needs its bearer's certificate.
    """

    def __init__(
        self,
        key: Ed25519PublicKey,
        federation: str,
        *,
        now: "Clock",
        is_current: Callable[[str, int], bool] = lambda _name, _generation: True,
        on_login: Callable[[str, str | None], None] = lambda _name, _why: None,
        life_s: float | None = None,
        has_key: Callable[[str], bool] = lambda _name: False,
        needs_certificate: bool = False,
    ) -> None:
        self._key = key
        self._federation = federation
        self._now = now
        self._is_current = is_current
        self._on_login = on_login
        self._life_s = life_s
        self._has_key = has_key
        self._needs_certificate = needs_certificate
        self._limited: dict[str, float | None] = {}
        """Devices whose connection is limited, with the time at which it ends because they have a token."""

    def authenticate(
        self, client_id: str, username: str | None, password: bytes | None, certified: Certified | None = None
    ) -> Principal:
        """Check the token in `password` and that all names beside it are its bearer's. Raises TokenRefused."""
        try:
            principal = self._checked(client_id, username, password, certified)
        except TokenRefused as exc:
            self._on_login(client_id, str(exc))
            raise
        self._on_login(principal.name, None)
        return principal

    def _checked(
        self, client_id: str, username: str | None, password: bytes | None, certified: Certified | None
    ) -> Principal:
        renews = self._life_s is not None
        claims = tokens.check(self._key, password, federation=self._federation, even_expired=renews)
        is_own = client_id in {"", claims.sub} or (claims.role == "server" and client_id.startswith(f"{claims.sub}/"))
        if username != claims.sub or not is_own:
            raise TokenRefused(f"the token of {claims.sub!r} is used by another name: both names must be its own")
        if self._needs_certificate and certified != Certified(claims.sub, claims.gen):
            shown = (
                "there is none" if certified is None else f"not {certified.name!r}, enrolment {certified.generation}"
            )
            raise TokenRefused(f"{claims.sub!r}, enrolment {claims.gen}, needs a certificate of its own: {shown}")
        left_s = claims.exp - self._now()
        if left_s <= 0 and claims.role == "server":
            raise TokenRefused("the server's token has expired")
        is_limited = renews and claims.role == "device" and (left_s <= 0 or self._has_served(claims))
        if is_limited:
            left_s = LIMITED_S
        elif self._life_s is not None:
            left_s = min(left_s, self._life_s)
        principal = Principal(
            name=claims.sub, role=claims.role, valid_for_s=left_s, generation=claims.gen, is_limited=is_limited
        )
        if not self._is_enrolled(principal):
            raise TokenRefused(f"{claims.sub!r} was revoked, or has been enrolled again since")
        self._limited.pop(claims.sub, None)
        if is_limited:
            self._limited[claims.sub] = None
        return principal

    def _has_served(self, claims: tokens.Claims) -> bool:
        """Return whether a token is one of enrolment that has brought its device's key."""
        return not claims.renewed and self._has_key(claims.sub)

    def _is_enrolled(self, principal: Principal) -> bool:
        return principal.role == "server" or self._is_current(principal.name, principal.generation)

    def is_limited(self, device: str) -> bool:
        """Return whether a device's present connection is good for asking for a token alone."""
        return device in self._limited

    def on_renewed(self, device: str) -> None:
        """End a device's limited connection soon, because it was given a token to come back with."""
        if device in self._limited:
            self._limited[device] = self._now() + LEAVE_S

    def may_stay(self, principal: Principal) -> bool:
        """Return whether the token's bearer is enrolled as it was, and need not come back with another token."""
        leave_s = self._limited.get(principal.name) if principal.is_limited else None
        return self._is_enrolled(principal) and (leave_s is None or self._now() < leave_s)

    def may_publish(self, principal: Principal, topic: str) -> bool:
        """Return whether the token's bearer may publish to `topic`."""
        own = topics.Topics(self._federation)
        if principal.is_limited and topic not in {own.event(principal.name), own.status(principal.name)}:
            return False
        return topics.may_publish(self._federation, principal.role, principal.name, topic)

    def may_subscribe(self, principal: Principal, topic_filter: str) -> bool:
        """Return whether the token's bearer may subscribe to `topic_filter`."""
        if principal.is_limited and topic_filter != topics.Topics(self._federation).command(principal.name):
            return False
        return topics.may_subscribe(self._federation, principal.role, principal.name, topic_filter)


class Clock(Protocol):
    """Seconds since the epoch, as time.time."""

    def __call__(self) -> float:
        """Return the present time."""
        ...
