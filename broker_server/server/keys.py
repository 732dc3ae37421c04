"""The server's Ed25519 keys, each a file that is readable by its owner alone.

state/server.key         signs devices' tokens, and all else until keys are rolled
state/signing.key        signs commands and manifests, once keys were rolled
state/retired/NUMBER.key signed them before; each names its heir to devices that were enrolled before it was retired
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edge_runtime.wire.files import write_atomic

KEY = "server.key"
SIGNING = "signing.key"
RETIRED = "retired"
_SECRET = 0o600


class KeyInvalid(ValueError):
    """The key file is not an Ed25519 private key, or others can read it."""


def load_or_create(state: Path) -> Ed25519PrivateKey:
    """Return the key in a state folder, made at the first call. Raises KeyInvalid; OSError as the file system does."""
    return _load_or_create(state / KEY)


def signing_key(state: Path) -> Ed25519PrivateKey:
    """Return the key that signs commands and manifests. Raises KeyInvalid; OSError as the file system does."""
    path = state / SIGNING
    return _load_or_create(path if path.exists() else state / KEY)


@dataclass(frozen=True)
class RetiredKey:
    """A key that signed commands until `retired_s`, in seconds since the epoch, and the public half of its heir."""

    key: Ed25519PrivateKey
    heir: bytes
    retired_s: float


def retired_keys(state: Path) -> list[RetiredKey]:
    """Return the keys that were retired, oldest first. Raises KeyInvalid; OSError as the file system does."""
    paths = sorted((state / RETIRED).glob("*.key"))
    if not paths:
        return []
    keys = [_load_or_create(path) for path in paths]
    heirs = [*keys[1:], signing_key(state)]
    return [
        RetiredKey(key, heir.public_key().public_bytes_raw(), path.stat().st_mtime)
        for key, heir, path in zip(keys, heirs, paths, strict=True)
    ]


def roll(state: Path) -> str:
    """Make a new key that signs commands and manifests, and return its public half, in hexadecimal.

    The one before names it to the devices, so none has to be enrolled again.
    """
    before = signing_key(state)
    number = len(list((state / RETIRED).glob("*.key")))
    made = Ed25519PrivateKey.generate()
    write_atomic(state / RETIRED / f"{number:04}.key", _pem(before), mode=_SECRET)
    write_atomic(state / SIGNING, _pem(made), mode=_SECRET)
    return made.public_key().public_bytes_raw().hex()


def _load_or_create(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        write_atomic(path, _pem(key), mode=_SECRET)
        return key
    if path.stat().st_mode & 0o077:
        raise KeyInvalid(f"{path} can be read by others: run chmod 600 on it, and enrol devices again if it has leaked")
    try:
        loaded = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as exc:
        raise KeyInvalid(f"{path} is not a private key in PEM") from exc
    if not isinstance(loaded, Ed25519PrivateKey):
        raise KeyInvalid(f"{path} is a private key of another kind than Ed25519")
    return loaded


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
