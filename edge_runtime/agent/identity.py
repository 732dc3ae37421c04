"""The device's own key: made on the device at its first start, and never anywhere else.

state/device.key     32 bytes in hexadecimal, readable by the owner alone
state/counter        ahead of the numbers of the messages that were sent
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.agent.state import StateUnusable
from edge_runtime.wire.files import write_atomic

KEY = "device.key"
COUNTER = "counter"
SECRET = 0o600


def load_or_create(state: Path) -> Ed25519PrivateKey:
    """Return the key in a state folder, made at the first call. Raises StateUnusable."""
    path = state / KEY
    try:
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            write_atomic(path, key.private_bytes_raw().hex().encode(), mode=SECRET)
            return key
        if path.stat().st_mode & 0o077:
            raise StateUnusable(f"{path} can be read by others: chmod 600 {path}, and enrol the device again")
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text()))
    except ValueError as exc:
        raise StateUnusable(f"{path} is not a device's key: delete it, and enrol the device again") from exc
    except OSError as exc:
        if isinstance(exc, StateUnusable):
            raise
        raise StateUnusable(f"{path} cannot be used: {exc.strerror}") from exc
