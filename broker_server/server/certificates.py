"""The server's own certificates: a CA that its devices pin, and certificates of it for the broker and its clients.

state/tls/ca.pem, ca.key          made once; enrolling writes the certificate into each device's file
state/tls/server.pem, server.key  made again when a third of its life is left, or for other names
state/tls/client.pem              the server's own at a broker of others, with its key; made again likewise

Keys are of the curve P-256, devices' are Ed25519; all are readable by their owner alone. A certificate says what it is
for: none of a client's passes for a server's, which devices would trust.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

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

    def ca_file(self) -> Path:
        """Return the file (PEM) of the CA's certificate, made at the first call."""
        self._ca()
        return self._root / "ca.pem"

    def server(self, names: Iterable[str]) -> ServerCertificate:
        """Return the certificate for these host names and addresses, made anew if need be."""
        wanted = sorted(set(names))
        certificate, key = self._root / "server.pem", self._root / "server.key"
        if certificate.exists() and key.exists() and self._is_good(_certificate(certificate), wanted):
            return ServerCertificate(certificate, key, is_new=False)
        signed, own = self.issue(wanted)
        write_atomic(key, own, mode=_SECRET)
        write_atomic(certificate, signed)
        return ServerCertificate(certificate, key, is_new=True)

    def issue(self, names: Iterable[str]) -> tuple[bytes, bytes]:
        """Return a new certificate of the CA for these host names and addresses, and its key (PEM)."""
        own = ec.generate_private_key(ec.SECP256R1())
        named = x509.SubjectAlternativeName([_general(name) for name in sorted(set(names))])
        builder = self._builder(_name("MAS Edge server"), self._ca()[0].subject, own.public_key(), SERVER_DAYS)
        signed = self._signed(builder.add_extension(named, critical=False), ExtendedKeyUsageOID.SERVER_AUTH)
        return signed.public_bytes(Encoding.PEM), _pem(own)

    def client(self, name: str, key: Ed25519PublicKey, *, days: float, serial: str | None = None) -> x509.Certificate:
        """Return a new certificate for a client of a broker; `serial` becomes its subject's serial number."""
        subject = _name(name, serial)
        return self._signed(self._builder(subject, self._ca()[0].subject, key, days), ExtendedKeyUsageOID.CLIENT_AUTH)

    def has_issued(self, certificate: x509.Certificate) -> bool:
        """Return whether a certificate says that it is of this CA, which has a name of its own."""
        return certificate.issuer == self._ca()[0].subject

    def own_client(self, name: str) -> Path:
        """Return the file (PEM) of the server's certificate and key for a broker of others, made anew if need be."""
        path = self._root / "client.pem"
        if path.exists():
            found = _certificate(path)
            if self.has_issued(found) and found.subject == _name(name) and self._is_young(found):
                return path
        own = Ed25519PrivateKey.generate()
        signed = self.client(name, own.public_key(), days=SERVER_DAYS)
        write_atomic(path, _pem(own) + signed.public_bytes(Encoding.PEM), mode=_SECRET)
        return path

    def revocations(self, serials: Iterable[int]) -> bytes:
        """Return the list (PEM) that revokes the certificates with these serial numbers."""
        ca, ca_key = self._ca()
        revoked = x509.CertificateRevocationListBuilder().issuer_name(ca.subject).last_update(self._now - _SLACK)
        revoked = revoked.next_update(ca.not_valid_after_utc)  # brokers refuse everybody by a list that is too old
        for serial in sorted(set(serials)):
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self._now - _SLACK).build()
            revoked = revoked.add_revoked_certificate(one)
        return revoked.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def clock_fault(self) -> str | None:
        """Return a sentence where this machine's clock is before the CA was made; None where it may be right."""
        made = self._ca()[0].not_valid_before_utc + _SLACK
        if self._now >= made - _SLACK:
            return None
        return (
            f"this machine's clock, {self._now.date().isoformat()}, is before the server's CA was made on "
            f"{made.date().isoformat()}: set the clock, for by it no device's token is valid yet"
        )

    def _is_good(self, found: x509.Certificate, wanted: list[str]) -> bool:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_for_them = sorted(str(name.value) for name in names) == wanted
        return self.has_issued(found) and is_for_them and self._is_young(found)

    def _is_young(self, found: x509.Certificate) -> bool:
        return found.not_valid_after_utc - self._now > dt.timedelta(days=SERVER_DAYS / 3)

    def _signed(self, builder: x509.CertificateBuilder, purpose: ObjectIdentifier) -> x509.Certificate:
        ca_key = self._ca()[1]
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
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
            name = _name(f"MAS Edge CA {own.public_key().public_numbers().x:064x}"[:28])
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
        self,
        subject: x509.Name,
        issuer: x509.Name | None,
        key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
        days: float,
    ) -> x509.CertificateBuilder:
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


def _name(name: str, serial: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if serial is not None:
        parts.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
    return x509.Name(parts)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
