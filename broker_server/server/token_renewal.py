"""Devices' tokens, renewed: a device whose key has just signed a message gets another, on its own topic, signed.

Rules
- A signed message of the device's is the proof: its number and boot are good once, so nobody repeats it.
- A token is given for each boot, at half of the life of the one before, and to a device whose present one is good for
  asking alone (broker_server.mqtt.auth).
- A revoked device, or one that was enrolled again, signs nothing that is believed, and so gets none.
"""

# coverage: every branch

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.mqtt.auth import TokenAuthorizer
from edge_runtime.wire import tokens
from edge_runtime.wire.envelope import Gift


@dataclass(frozen=True)
class _Given:
    generation: int
    boot: bytes
    next_s: float


class TokenRenewal:
    """Gives devices tokens that are good for `life_s`. `clock` is in seconds and only goes forward."""

    gift: Gift = b"token"

    def __init__(
        self,
        key: Ed25519PrivateKey,
        federation: str,
        authorizer: TokenAuthorizer,
        *,
        life_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._key, self._federation, self._authorizer = key, federation, authorizer
        self._life_s, self._clock = life_s, clock
        self._given: dict[str, _Given] = {}

    def after_proof(self, device: str, generation: int, boot: bytes, _key: bytes) -> str | None:
        """Return a new token for a device that has signed a message, if it is time for one."""
        now_s, given = self._clock(), self._given.get(device)
        is_known = given is not None and (given.generation, given.boot) == (generation, boot)
        if given is not None and is_known and now_s < given.next_s and not self._authorizer.is_limited(device):
            return None
        self._given[device] = _Given(generation, boot, now_s + self._life_s / 2)
        self._authorizer.on_renewed(device)
        return tokens.issue(
            self._key,
            name=device,
            federation=self._federation,
            role="device",
            lifetime_s=self._life_s,
            generation=generation,
            renewed=True,
        )
