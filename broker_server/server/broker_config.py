"""The configuration of a broker of others for one federation: who may connect, what each may touch, TLS and limits.

Mosquitto alone so far. The files are for its own account; `passwords` and `broker.key` are secrets.

    mosquitto.conf   listener, certificate, limits
    acl              a device publishes and reads its own topics and no others; the server all of the federation's
    passwords        of every device that is enrolled, and of the server
    ca.pem, crl.pem  instead of them, where clients need certificates: who gives these, and which are revoked
    broker.pem, .key a certificate of the server's own CA, which enrolled devices trust
"""

import base64
import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path

from broker_server.server.certificates import Certificates
from broker_server.server.device_certificates import DeviceCertificates
from broker_server.server.enrolments import Enrolments
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.topics import Topics

PASSWORD = "broker.password"  # noqa: S105 - a file's name
SERVER_USER = "server"
_SECRET = 0o600
_ITERATIONS = 101
"""Mosquitto's own number. A token is 300 random characters: no number of guesses finds it."""


def password_hash(password: str) -> str:
    """Return a password as Mosquitto keeps it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def mosquitto(
    out: Path, *, state: Path, federation: str, port: int, names: Iterable[str], client_certificates: bool = False
) -> Path:
    """Write Mosquitto's files into a folder; return the server's password file. Raises CertificatesInvalid; OSError.

    With `client_certificates` Mosquitto takes a client's name from its certificate and looks at no password.
    """
    enrolments = Enrolments(state)
    server = state / PASSWORD
    if not server.exists():
        write_atomic(server, secrets.token_urlsafe(48).encode(), mode=_SECRET)
    lines = [f"{SERVER_USER}:{password_hash(server.read_text())}"]
    for name in enrolments.names():
        found = enrolments.find(name)
        if found is not None and not found.revoked and found.password is not None:
            lines.append(f"{name}:{found.password}")
    folder = out.resolve()
    certificate, key = Certificates(state).issue(names)
    write_atomic(folder / "passwords", _text(lines), mode=_SECRET)
    write_atomic(folder / "acl", _text(_acl(Topics(federation))), mode=_SECRET)
    write_atomic(folder / "broker.pem", certificate)
    write_atomic(folder / "broker.key", key, mode=_SECRET)
    conf = _conf(folder, port)
    if client_certificates:
        write_atomic(folder / "ca.pem", Certificates(state).ca_pem().encode())
        write_atomic(folder / "crl.pem", DeviceCertificates(state).revocations())
        conf += [
            f"cafile {folder / 'ca.pem'}",
            f"crlfile {folder / 'crl.pem'}",
            "require_certificate true",
            "use_identity_as_username true",
        ]
    write_atomic(folder / "mosquitto.conf", _text(conf))
    return server


def _conf(folder: Path, port: int) -> list[str]:
    return [
        "per_listener_settings false",
        "allow_anonymous false",
        f"password_file {folder / 'passwords'}",
        f"acl_file {folder / 'acl'}",
        "use_username_as_clientid true",
        "persistence false",
        "max_packet_size 1052672",
        "max_inflight_messages 20",
        "max_queued_bytes 8388608",
        "max_queued_messages 1000",
        f"listener {port}",
        "max_connections 1024",
        f"certfile {folder / 'broker.pem'}",
        f"keyfile {folder / 'broker.key'}",
        "tls_version tlsv1.2",
    ]


def _acl(topics: Topics) -> list[str]:
    own = f"{topics.root}/device/%u"
    written = ("status", "event", "upload/+/+", "split_learning/up")
    return [
        f"user {SERVER_USER}",
        f"topic readwrite {topics.root}/#",
        "",
        *(f"pattern write {own}/{kind}" for kind in written),
        *(f"pattern read {own}/{kind}" for kind in ("status", "command", "download/+/+", "split_learning/down")),
    ]


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
