"""Who may connect to a broker of others, by which password, and what each may touch there.

A device publishes and reads its own topics and no others, the server all of the federation's.
"""

import base64
import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from broker_server.server.certificates import Certificates
from broker_server.server.device_certificates import DeviceCertificates
from broker_server.server.enrolments import Enrolments
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.topics import Topics

PASSWORD = "broker.password"  # noqa: S105 - a file's name
SERVER_USER = "server"
SECRET = 0o600
MAX_PACKET_BYTES = 1_052_672
"""The largest packet that server and devices send: a message of a mebibyte with its topic."""
MAX_CONNECTIONS = 1024
_ITERATIONS = 101
"""Mosquitto's own number. A token is 300 random characters: no number of guesses finds it."""


class BrokerUnfit(ValueError):
    """A broker of this kind cannot serve the federation so; the sentence says what to do."""


@dataclass(frozen=True)
class User:
    """One who may connect: password, client id, and the filters of the topics to publish to and to read."""

    name: str
    password: str
    client_id: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a broker has to know. `nodes` are names or addresses of the machines that form it, most often one."""

    topics: Topics
    users: tuple[User, ...]
    nodes: tuple[str, ...]
    port: int
    certificate: bytes
    key: bytes
    ca: bytes
    revocations: bytes | None = None
    """The list of revoked certificates (PEM), where clients need one and no password."""

    @property
    def is_cluster(self) -> bool:
        """Whether several nodes form the broker."""
        return len(self.nodes) > 1

    def check_passwords(self, broker: str) -> None:
        """Raise BrokerUnfit where clients need certificates."""
        if self.revocations is not None:
            raise BrokerUnfit(f"client certificates are for Mosquitto: {broker}'s configuration here is for passwords")

    def check_names(self, broker: str) -> None:
        """Raise BrokerUnfit for a name with a dot, which some brokers take for a level of a topic."""
        names = [self.topics.federation, *(user.name for user in self.users)]
        if dotted := [name for name in names if "." in name]:
            raise BrokerUnfit(
                f"{broker} takes a dot for a level of a topic: name {', '.join(dotted)} without one, or take another "
                "broker"
            )

    def listener(self, node: str) -> str:
        """Return where a node listens: at its own address in a cluster, else at all of the machine's."""
        return f"{node if self.is_cluster else '0.0.0.0'}:{self.port}"  # noqa: S104

    def write_certificate(self, folder: Path) -> None:
        """Write broker.pem, broker.key and ca.pem. Raises OSError as the file system does."""
        write_atomic(folder / "broker.pem", self.certificate)
        write_atomic(folder / "broker.key", self.key, mode=SECRET)
        write_atomic(folder / "ca.pem", self.ca)


def access(
    state: Path,
    *,
    federation: str,
    port: int,
    names: Iterable[str],
    is_cluster: bool = False,
    client_certificates: bool = False,
) -> Access:
    """Return who may connect: the server, and every device that is enrolled now.

    With `client_certificates` the broker takes a client's name from its certificate and looks at no password.
    Raises BrokerUnfit, CertificatesInvalid; OSError as the file system does.
    """
    topics, certificates, names = Topics(federation), Certificates(state), tuple(names)
    certificate, key = certificates.issue(names)
    return Access(
        topics=topics,
        users=(_server(state, topics), *_devices(Enrolments(state), topics)),
        nodes=names if is_cluster else names[:1],
        port=port,
        certificate=certificate,
        key=key,
        ca=certificates.ca_pem().encode(),
        revocations=DeviceCertificates(state).revocations() if client_certificates else None,
    )


def _server(state: Path, topics: Topics) -> User:
    path = state / PASSWORD
    if not path.exists():
        write_atomic(path, secrets.token_urlsafe(48).encode(), mode=SECRET)
    everything = (f"{topics.root}/#",)
    return User(SERVER_USER, path.read_text(), server_client_id(topics.federation), everything, everything)


def _devices(enrolments: Enrolments, topics: Topics) -> Iterator[User]:
    for name in enrolments.current():
        found = enrolments.find(name)
        if found is None or found.token is None:
            raise BrokerUnfit(f"{name} was enrolled by an older version, which kept no password of it: enrol it again")
        writes = tuple(each.replace("/device/+/", f"/device/{name}/") for each in topics.from_devices())
        yield User(name, found.token, name, writes, (topics.status(name), *topics.to_device(name)))


def server_client_id(federation: str) -> str:
    """Return the client id of a federation's server."""
    return f"{SERVER_USER}/{federation}"


def password_hash(password: str) -> str:
    """Return a password as Mosquitto keeps it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def lines(texts: Iterable[str]) -> bytes:
    """Return a file of lines."""
    return "".join(f"{text}\n" for text in texts).encode()


def settings(values: Mapping[str, object]) -> bytes:
    """Return a file of lines `key = value`."""
    return lines(f"{key} = {value}" for key, value in values.items())
