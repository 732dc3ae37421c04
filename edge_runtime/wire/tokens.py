"""Tokens: JSON Web Tokens signed with Ed25519, carried as the MQTT password.

A token has its bearer's name (sub), federation (aud), role (role), expiry (exp) and enrolment (gen), and says whether
its bearer had to prove its key for it (renewed). A device only sends its token; the broker reads it. So jwt is needed
on the server alone.
"""

# coverage: every branch

import datetime as dt
import time
from typing import Literal, cast

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_runtime.wire.errors import TokenRefused, reason
from edge_runtime.wire.names import DeviceId, FederationName

ISSUER = "mas-edge"
MAX_TOKEN_BYTES = 4096
Role = Literal["device", "server"]


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims of a valid token. `exp` is in seconds since the epoch."""

    sub: DeviceId
    aud: FederationName
    role: Role
    exp: int
    gen: int = 0
    """The generation of the device's enrolment; 0 for a server."""
    renewed: bool = False
    """Given to a device that had signed with its key, in place of the one that it was enrolled with."""


def issue(
    key: Ed25519PrivateKey,
    *,
    name: str,
    federation: str,
    role: Role,
    lifetime_s: float,
    generation: int = 0,
    renewed: bool = False,
) -> str:
    """Return a token for `name`. Raises TokenRefused for a name that is not allowed."""
    now = int(time.time())
    until = now + int(lifetime_s)
    claims = {"iss": ISSUER, "sub": name, "aud": federation, "role": role, "iat": now, "exp": until, "gen": generation}
    claims |= {"renewed": True} if renewed else {}
    try:
        msgspec.convert(claims, Claims)
    except msgspec.ValidationError as exc:
        raise TokenRefused(f"no token for {name[:80]!r}: {reason(exc)}") from exc
    return jwt.encode(claims, key, algorithm="EdDSA")


def check(key: Ed25519PublicKey, token: str | bytes | None, *, federation: str, even_expired: bool = False) -> Claims:
    """Return the claims of a token that is valid for `federation` now. Raises TokenRefused with the reason.

    With `even_expired` it may have expired.
    """
    if not token:
        raise TokenRefused("no token")
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused(f"a token of {len(token)} bytes is over the {MAX_TOKEN_BYTES} allowed")
    try:
        claims = jwt.decode(
            cast("str", token),
            key,
            algorithms=["EdDSA"],
            audience=federation,
            issuer=ISSUER,
            options={"require": ["exp", "iat", "sub", "aud", "iss"], "verify_exp": not even_expired},
        )
        return msgspec.convert(claims, Claims)
    except jwt.ExpiredSignatureError as exc:
        raise TokenRefused(
            f"the token has expired by the server's clock, {_today()}: enrol the device again, or set the clock"
        ) from exc
    except jwt.ImmatureSignatureError as exc:
        raise TokenRefused(f"the token is not valid yet by the server's clock, {_today()}: set the clock") from exc
    except jwt.InvalidAudienceError as exc:
        raise TokenRefused(f"the token is not for federation {federation!r}") from exc
    except (jwt.InvalidTokenError, ValueError, RecursionError) as exc:
        # The last two: jwt reads the header's JSON before it checks the signature, and lets nesting and
        # odd text through to its caller.
        raise TokenRefused(f"the token is not valid: {reason(exc)}") from exc


def _today() -> str:
    return dt.datetime.now(dt.timezone.utc).date().isoformat()
