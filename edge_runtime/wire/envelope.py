"""Envelopes: what is around each control message, so that no broker has to be trusted.

    command: boot 16 · counter 8 · signature 64 · message                          server → device
    new key: boot 16 · counter 8 · signature 64 · key 32                           server → device
    token:   boot 16 · counter 8 · signature 64 · token                            server → device
    certificate: boot 16 · counter 8 · signature 64 · certificate (PEM)            server → device
    event:   key 32 · proof 32 · boot 16 · counter 8 · signature 64 · message      device → server

Rules
- The signature (Ed25519) is of all that is in front of it, the message, the direction, the federation and the device:
  an envelope fits nowhere else.
- `boot` is random and new with each process of a device. A command is for one boot, so that what was sent to an earlier
  one is worth nothing.
- A new key is the server's next one, signed by the one before: devices trust it from then on, and the other no longer.
- A token, and a certificate for the device's own key, are what the device shows its broker from then on.
- Counters only grow, over restarts too (counter.py): an envelope is good once.
- `key` is the device's own, made on the device. `proof` is an HMAC of it by the code that the device was enrolled with:
  the server keeps the first key that comes with the right one, and takes no other.
"""

# coverage: every branch

import hmac
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_runtime.wire.errors import MessageInvalid, SignatureInvalid

KEY_BYTES = 32
PROOF_BYTES = 32
BOOT_BYTES = 16
COUNTER_BYTES = 8
SIGNATURE_BYTES = 64
COMMAND_BYTES = BOOT_BYTES + COUNTER_BYTES + SIGNATURE_BYTES
EVENT_BYTES = KEY_BYTES + PROOF_BYTES + COMMAND_BYTES
"""What an envelope adds to a message."""
NO_BOOT = bytes(BOOT_BYTES)
"""In a command to a device of which no boot is known; it is for none."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where an envelope is good: a federation and a device."""

    federation: str
    device: str

    def signed(self, direction: bytes, head: bytes, body: bytes) -> bytes:
        """Return the bytes that a signature is made of. Names have no line breaks, so they cannot run together."""
        names = f"{self.federation}\n{self.device}\n".encode()
        return b"mas-edge " + direction + b" 3\n" + names + head + body

    def proof(self, code: bytes, key: bytes) -> bytes:
        """Return the proof that a key is of the device that was enrolled with this code."""
        return hmac.digest(code, self.signed(b"enrolment", key, b""), "sha256")


@dataclass(frozen=True, kw_only=True)
class CommandEnvelope:
    """A message of the server's, whose signature is good."""

    boot: bytes
    counter: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class EventEnvelope:
    """A message of a device's. Nothing in it is to be believed before `check_event`."""

    key: bytes
    proof: bytes
    boot: bytes
    counter: int
    signature: bytes
    body: bytes

    @property
    def head(self) -> bytes:
        """The bytes in front of the signature."""
        return self.key + self.proof + self.boot + self.counter.to_bytes(COUNTER_BYTES, "big")


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """Return the public half of a key, 32 bytes."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


Gift = Literal[b"token", b"certificate"]
Purpose = Literal[b"command", b"new key"] | Gift


def seal_command(
    key: Ed25519PrivateKey, scope: Scope, *, boot: bytes, counter: int, body: bytes, purpose: Purpose = b"command"
) -> bytes:
    """Return the envelope of a message to a device; with another purpose of the server's next key, or a gift."""
    head = boot + counter.to_bytes(COUNTER_BYTES, "big")
    return head + key.sign(scope.signed(purpose, head, body)) + body


def open_command(key: Ed25519PublicKey, scope: Scope, payload: bytes, purpose: Purpose = b"command") -> CommandEnvelope:
    """Return what is in a command's envelope. Raises MessageInvalid, SignatureInvalid."""
    if len(payload) < COMMAND_BYTES:
        raise MessageInvalid(f"a command of {len(payload)} bytes has no room for its signature")
    head, rest = payload[: BOOT_BYTES + COUNTER_BYTES], payload[BOOT_BYTES + COUNTER_BYTES :]
    signature, body = rest[:SIGNATURE_BYTES], rest[SIGNATURE_BYTES:]
    _verify(key, signature, scope.signed(purpose, head, body))
    return CommandEnvelope(boot=head[:BOOT_BYTES], counter=int.from_bytes(head[BOOT_BYTES:], "big"), body=body)


def seal_event(key: Ed25519PrivateKey, scope: Scope, *, code: bytes, boot: bytes, counter: int, body: bytes) -> bytes:
    """Return the envelope of a message from a device."""
    public = raw_public(key)
    head = public + scope.proof(code, public) + boot + counter.to_bytes(COUNTER_BYTES, "big")
    return head + key.sign(scope.signed(b"event", head, body)) + body


def read_event(payload: bytes) -> EventEnvelope:
    """Return the parts of an event's envelope, unchecked. Raises MessageInvalid."""
    if len(payload) < EVENT_BYTES:
        raise MessageInvalid(f"an event of {len(payload)} bytes has no room for its signature")
    parts, start = [], 0
    for length in (KEY_BYTES, PROOF_BYTES, BOOT_BYTES, COUNTER_BYTES, SIGNATURE_BYTES):
        parts.append(payload[start : start + length])
        start += length
    key, proof, boot, counter, signature = parts
    return EventEnvelope(
        key=key,
        proof=proof,
        boot=boot,
        counter=int.from_bytes(counter, "big"),
        signature=signature,
        body=payload[start:],
    )


def check_event(event: EventEnvelope, scope: Scope) -> None:
    """Raise SignatureInvalid unless the owner of the event's key made it, for this federation and device."""
    _verify(
        Ed25519PublicKey.from_public_bytes(event.key), event.signature, scope.signed(b"event", event.head, event.body)
    )


def _verify(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> None:
    try:
        key.verify(signature, signed)
    except InvalidSignature as exc:
        raise SignatureInvalid("the message was not signed by the key that is trusted here") from exc
