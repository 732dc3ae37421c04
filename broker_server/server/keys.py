"""The server's Ed25519 key: it signs devices' tokens and groups' manifests. One file, readable by its owner alone."""

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
_SECRET = 0o600


class KeyInvalid(ValueError):
    """The key file is not an Ed25519 private key, or others can read it."""


def load_or_create(state: Path) -> Ed25519PrivateKey:
    """Return the key in a state folder, made at the first call. Raises KeyInvalid; OSError as the file system does."""
    path = state / KEY
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=_SECRET)
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
