"""Devices' certificates for their connections: one at enrolment, then one for the key that the device has made.

Rules
- A certificate names its device and, as its subject's serial number, the generation of its enrolment: one of an earlier
  enrolment is of no use on our own broker, and is in the list of those revoked for brokers of others.
- The first one comes with its key in the device's file, and is good for as long as the code that stands beside it.
- The others are for the device's own key, which has never left it: a signed message is the proof that it has the key.
  One is given again with each boot, and another when half of its life is over.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_server.server.certificates import Certificates, CertificatesInvalid
from broker_server.server.enrolments import CODE_S, Enrolments, IssuedCertificate
from edge_runtime.wire.envelope import Gift

DAYS = 365.0
AGAIN_S = 600.0
"""The time to the next try where a certificate could not be made."""
_DAY_S = 86_400.0
_HALF_S = DAYS * _DAY_S / 2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Given:
    generation: int
    boot: bytes
    next_s: float


class DeviceCertificates:
    """Makes the certificates of a state folder's devices. `clock` gives seconds since the epoch."""

    gift: Gift = b"certificate"

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._state, self._clock = state, clock
        self._enrolments = Enrolments(state, clock)
        self._given: dict[str, _Given] = {}

    def first(self, device: str, generation: int) -> str:
        """Return a device's first certificate, and its key, for its file (PEM). Raises CertificatesInvalid; OSError."""
        own = Ed25519PrivateKey.generate()
        key = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        made = self._certificates().client(device, own.public_key(), days=CODE_S / _DAY_S, serial=str(generation))
        self._note(device, generation, made, is_own=False)
        return _pem(made) + key

    def after_proof(self, device: str, generation: int, boot: bytes, key: bytes) -> str | None:
        """Return a certificate (PEM) for a device that has signed a message with `key`, if it is time for one."""
        now_s, given = self._clock(), self._given.get(device)
        if given is not None and (given.generation, given.boot) == (generation, boot) and now_s < given.next_s:
            return None
        try:
            held = self._held(device) or self._renewed(device, generation, key)
        except (OSError, CertificatesInvalid) as exc:  # it works without, as long as the one before is good
            _LOG.warning("%s is given no certificate: %s", device, exc)
            self._given[device] = _Given(generation, boot, now_s + AGAIN_S)
            return None
        self._given[device] = _Given(generation, boot, _end_s(held) - _HALF_S)
        return _pem(held)

    def revocations(self) -> bytes:
        """Return the list (PEM) of all certificates that are worth nothing any more, and have not expired.

        Raises CertificatesInvalid; OSError.
        """
        found = ((name, self._enrolments.find(name)) for name in self._enrolments.names())
        return self._certificates().revocations(
            int(each.serial, 16)
            for name, enrolment in found
            if enrolment is not None
            for each in enrolment.issued
            if not self._enrolments.is_current(name, each.generation)
        )

    def _held(self, device: str) -> x509.Certificate | None:
        """Return the last certificate for a device's own key, if more than half of its life is left."""
        found = self._enrolments.find(device)
        if found is None or found.certificate is None:
            return None
        held = x509.load_pem_x509_certificate(found.certificate.encode())
        is_good = self._certificates().has_issued(held) and _end_s(held) - self._clock() > _HALF_S
        return held if is_good else None

    def _renewed(self, device: str, generation: int, key: bytes) -> x509.Certificate:
        public = Ed25519PublicKey.from_public_bytes(key)
        made = self._certificates().client(device, public, days=DAYS, serial=str(generation))
        self._note(device, generation, made, is_own=True)
        return made

    def _note(self, device: str, generation: int, made: x509.Certificate, *, is_own: bool) -> None:
        issued = IssuedCertificate(serial=f"{made.serial_number:x}", generation=generation, until_s=_end_s(made))
        self._enrolments.add_certificate(device, issued, _pem(made) if is_own else None)

    def _certificates(self) -> Certificates:
        return Certificates(self._state, dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc))


def _end_s(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
