"""The server's own certificates: a CA that its devices pin, and a certificate of it for the broker.

state/tls/ca.pem, ca.key          made once; enrolling writes the certificate into each device's file
state/tls/server.pem, server.key  made again when a third of its life is left, or for other names

Keys are of the curve P-256 and readable by the server's owner alone.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_runtime.wire.files import write_atomic

TLS = "tls"
CA_DAYS = 20 * 365
SERVER_DAYS = 365
_SECRET = 0o600
_PRIVATE = 0o700
_EARLIEST = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
"""A clock before this is not set: the program is younger."""
_SLACK = dt.timedelta(days=1)
"""How far a device's clock may be behind."""


class CertificatesInvalid(ValueError):
    """The files in the folder of certificates are not what was written there."""


@dataclass(frozen=True)
class ServerCertificate:
    """Files (PEM) of the broker's certificate and its key, and whether they have just been made."""

    certificate: Path
    key: Path
    is_new: bool


class Certificates:
    """The certificates in a state folder. Methods raise CertificatesInvalid; OSError as the file system does."""

    def __init__(self, state: Path, now: dt.datetime | None = None) -> None:
        self._root = state / TLS
        self._now = now or dt.datetime.now(dt.timezone.utc)

    def ca_pem(self) -> str:
        """Return the CA's certificate, made at the first call."""
        return self._ca()[0].public_bytes(Encoding.PEM).decode()

    def server(self, names: Iterable[str]) -> ServerCertificate:
        """Return the certificate for these host names and addresses, made anew if need be."""
        wanted = sorted(set(names))
        certificate, key = self._root / "server.pem", self._root / "server.key"
        ca, _ = self._ca()
        if certificate.exists() and key.exists() and self._is_good(_certificate(certificate), ca, wanted):
            return ServerCertificate(certificate, key, is_new=False)
        signed, own = self.issue(wanted)
        write_atomic(key, own, mode=_SECRET)
        write_atomic(certificate, signed)
        return ServerCertificate(certificate, key, is_new=True)

    def issue(self, names: Iterable[str]) -> tuple[bytes, bytes]:
        """Return a new certificate of the CA for these host names and addresses, and its key (PEM)."""
        ca, ca_key = self._ca()
        own = ec.generate_private_key(ec.SECP256R1())
        signed = (
            self._builder("MAS Edge server", ca.subject, own.public_key(), SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in sorted(set(names))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        return signed.public_bytes(Encoding.PEM), _pem(own)

    def clock_fault(self) -> str | None:
        """Return a sentence where this machine's clock is before the CA was made; None where it may be right."""
        made = self._ca()[0].not_valid_before_utc + _SLACK
        if self._now >= made - _SLACK:
            return None
        return (
            f"this machine's clock, {self._now.date().isoformat()}, is before the server's CA was made on "
            f"{made.date().isoformat()}: set the clock, for by it no device's token is valid yet"
        )

    def _is_good(self, found: x509.Certificate, ca: x509.Certificate, wanted: list[str]) -> bool:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        left = found.not_valid_after_utc - self._now
        return (
            found.issuer == ca.subject
            and sorted(str(name.value) for name in names) == wanted
            and left > dt.timedelta(days=SERVER_DAYS / 3)
        )

    def _ca(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        certificate, key = self._root / "ca.pem", self._root / "ca.key"
        if not certificate.exists():
            if self._now < _EARLIEST:
                raise CertificatesInvalid(
                    f"this machine's clock says {self._now.date().isoformat()}: set it first, for by the right date a "
                    "certificate that is made now would have expired"
                )
            self._root.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
            own = ec.generate_private_key(ec.SECP256R1())
            name = f"MAS Edge CA {own.public_key().public_numbers().x:064x}"[:28]
            usage = x509.KeyUsage(
                digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
            )  # fmt: skip
            signed = (
                self._builder(name, None, own.public_key(), CA_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(usage, critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
                .sign(own, hashes.SHA256())
            )
            write_atomic(key, _pem(own), mode=_SECRET)
            write_atomic(certificate, signed.public_bytes(Encoding.PEM))
        try:
            loaded = load_pem_private_key(key.read_bytes(), password=None)
        except (ValueError, TypeError) as exc:
            raise CertificatesInvalid(f"{key} is not a private key in PEM: restore it from a backup") from exc
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise CertificatesInvalid(f"{key} is a private key of another kind: restore it from a backup")
        return _certificate(certificate), loaded

    def _builder(
        self, name: str, issuer: x509.Name | None, key: ec.EllipticCurvePublicKey, days: int
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _SLACK)
            .not_valid_after(self._now + dt.timedelta(days=days))
        )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as exc:
        raise CertificatesInvalid(f"{path} is not a certificate in PEM: restore it from a backup") from exc


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
