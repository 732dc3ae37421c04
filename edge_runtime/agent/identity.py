"""The device's own key: made on the device at its first start, and never anywhere else.

state/device.key     32 bytes in hexadecimal, readable by the owner alone
state/counter        ahead of the numbers of the messages that were sent
state/server_key     the server's key that is trusted now, where it has changed since the device was enrolled
state/token          the last token that the server has given the device, and of which enrolment; for the owner alone
state/client.pem     the last certificate that it was given, with its key, and of which enrolment; for the owner alone
"""

import hashlib
import hmac
import logging
import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge_runtime.agent.state import StateUnusable
from edge_runtime.wire.files import write_atomic

KEY = "device.key"
COUNTER = "counter"
SERVER_KEY = "server_key"
TOKEN = "token"  # noqa: S105  (a file's name)
CERTIFICATE = "client.pem"
_log = logging.getLogger(__name__)
_TOKEN = re.compile(rb"[A-Za-z0-9._-]{1,4096}\Z")
_KEY = re.compile(r"[0-9a-f]{64}\Z")
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


def noise_key(state: Path) -> bytes:
    """Return the secret from which a device draws noise on embeddings, made of its key. Raises StateUnusable."""
    return hmac.digest(load_or_create(state).private_bytes_raw(), b"noise on embeddings", "sha256")


class HeldToken:
    """The token that a device shows its broker: the one it was enrolled with, or the last that it was given since."""

    def __init__(self, state: Path, enrolled: str) -> None:
        self._path = state / TOKEN
        self._enrolment = hashlib.sha256(enrolled.encode()).hexdigest().encode()
        self._token = enrolled
        try:
            enrolment, _, token = self._path.read_bytes().partition(b" ")
        except OSError:  # the other one brings another
            return
        if enrolment == self._enrolment and _TOKEN.match(token):
            self._token = token.decode()

    @property
    def value(self) -> str:
        """The token."""
        return self._token

    def keep(self, token: bytes) -> None:
        """Show this one from now on, after restarts too."""
        if not _TOKEN.match(token):
            return
        self._token = token.decode()
        try:
            write_atomic(self._path, self._enrolment + b" " + token, mode=SECRET)
        except OSError as exc:
            _log.warning("the new token is not kept over a restart: %s cannot be written: %s", self._path, exc.strerror)


class HeldCertificate:
    """The certificate that a device shows its broker: the one of its enrolment, or the last that it was given since.

    `enrolled` is that one and its key (PEM), or None; `key` is the device's own. Raises StateUnusable.
    """

    def __init__(self, state: Path, enrolled: str | None, key: Ed25519PrivateKey) -> None:
        self._path = state / CERTIFICATE
        self._key = key
        self._enrolment = f"enrolment {hashlib.sha256((enrolled or '').encode()).hexdigest()}\n".encode()
        try:
            if enrolled is None:
                self._path.unlink(missing_ok=True)
            elif not self._path.exists() or not self._path.read_bytes().startswith(self._enrolment):
                write_atomic(self._path, self._enrolment + enrolled.encode(), mode=SECRET)
        except OSError as exc:
            raise StateUnusable(f"{self._path} cannot be used: {exc.strerror}") from exc

    @property
    def file(self) -> Path | None:
        """The file (PEM) with the certificate and its key; None where the device has none."""
        return self._path if self._path.exists() else None

    def keep(self, certificate: bytes) -> None:
        """Show this one (PEM) from the next connection on, after restarts too, if it is for the device's own key."""
        try:
            made = x509.load_pem_x509_certificate(certificate)
        except ValueError:
            return
        if made.public_key() != self._key.public_key():
            return
        own = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            write_atomic(self._path, self._enrolment + own + made.public_bytes(Encoding.PEM), mode=SECRET)
        except OSError as exc:
            _log.warning("the new certificate is not kept: %s cannot be written: %s", self._path, exc.strerror)


class ServerKey:
    """The server's key that a device trusts: the one it was enrolled with, or the last of those that took its place.

    Raises StateUnusable.
    """

    def __init__(self, state: Path, enrolled: str) -> None:
        self._path = state / SERVER_KEY
        try:
            known = self._path.read_text().split()
        except FileNotFoundError:
            known = []
        except (OSError, UnicodeDecodeError) as exc:
            raise StateUnusable(f"{self._path} cannot be read: delete it, and enrol the device again") from exc
        is_good = known[:1] == [enrolled] and all(_KEY.match(each) for each in known)
        self._known = known if is_good else [enrolled]  # a device that was enrolled anew begins anew

    @property
    def hex(self) -> str:
        """The key that is trusted, in hexadecimal."""
        return self._known[-1]

    def knows(self, key: str) -> bool:
        """Return whether a key was trusted before, or is."""
        return key in self._known

    def change(self, now: str) -> None:
        """Trust another key from now on."""
        known = [*self._known, now]
        try:
            write_atomic(self._path, " ".join(known).encode(), mode=SECRET)
        except OSError as exc:
            raise StateUnusable(f"{self._path} cannot be written: {exc.strerror}") from exc
        self._known = known
