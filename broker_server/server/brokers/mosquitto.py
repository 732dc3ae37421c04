"""Mosquitto's configuration. The files are for its own account; `passwords` and `broker.key` are secrets.

mosquitto.conf   listener, certificate, limits
acl              what each may touch
passwords        of every device that is enrolled, and of the server
ca.pem, crl.pem  instead of them, where clients need certificates: who gives these, and which are revoked
"""

from collections.abc import Iterable
from pathlib import Path

from broker_server.server.brokers.access import (
    MAX_CONNECTIONS,
    MAX_PACKET_BYTES,
    SECRET,
    Access,
    BrokerUnfit,
    User,
    lines,
    password_hash,
)
from edge_runtime.wire.files import write_atomic


def write(folder: Path, access: Access) -> list[str]:
    """Write the files; return the commands that start the broker. Raises BrokerUnfit; OSError."""
    if access.is_cluster:
        raise BrokerUnfit("Mosquitto forms no cluster: take rabbitmq or nats, or leave out --cluster")
    access.write_certificate(folder)
    write_atomic(
        folder / "passwords", lines(f"{user.name}:{password_hash(user.password)}" for user in access.users), mode=SECRET
    )
    write_atomic(folder / "acl", lines(line for user in access.users for line in _acl(user)))
    write_atomic(folder / "mosquitto.conf", lines(_conf(folder, access.port, access.revocations)))
    return [f"mosquitto -c {folder / 'mosquitto.conf'}"]


def _conf(folder: Path, port: int, revocations: bytes | None) -> list[str]:
    conf = [
        "per_listener_settings false",
        "allow_anonymous false",
        f"password_file {folder / 'passwords'}",
        f"acl_file {folder / 'acl'}",
        "use_username_as_clientid true",
        "persistence false",
        f"max_packet_size {MAX_PACKET_BYTES}",
        "max_inflight_messages 20",
        "max_queued_bytes 8388608",
        "max_queued_messages 1000",
        f"listener {port}",
        f"max_connections {MAX_CONNECTIONS}",
        f"certfile {folder / 'broker.pem'}",
        f"keyfile {folder / 'broker.key'}",
        "tls_version tlsv1.2",
    ]
    if revocations is not None:
        write_atomic(folder / "crl.pem", revocations)
        conf += [
            f"cafile {folder / 'ca.pem'}",
            f"crlfile {folder / 'crl.pem'}",
            "require_certificate true",
            "use_identity_as_username true",
        ]
    return conf


def _acl(user: User) -> Iterable[str]:
    yield f"user {user.name}"
    for topic_filter in sorted({*user.writes, *user.reads}):
        kinds = [kind for kind, of in (("write", user.writes), ("read", user.reads)) if topic_filter in of]
        yield f"topic {'readwrite' if len(kinds) > 1 else kinds[0]} {topic_filter}"
    yield ""
