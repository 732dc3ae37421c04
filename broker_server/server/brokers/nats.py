"""NATS' configuration, of one node or of a cluster. The files are for its own account, and have passwords in the clear.

NODE/nats.conf     listener, certificate, users, JetStream, cluster; its language takes JSON

NATS keeps passwords in the clear or as bcrypt, of which the first 72 bytes count: a token's begin alike. Levels of a
topic are parted by dots there.
"""

from pathlib import Path
from typing import Any

import msgspec

from broker_server.server.brokers.access import MAX_CONNECTIONS, MAX_PACKET_BYTES, SECRET, Access, User
from edge_runtime.wire.files import write_atomic

ROUTES_PORT = 6222
"""Where the nodes of a cluster speak to each other."""


def write(folder: Path, access: Access) -> list[str]:
    """Write the files; return the commands that start the broker. Raises BrokerUnfit; OSError."""
    access.check_passwords("NATS")
    access.check_names("NATS")
    access.write_certificate(folder)
    commands = []
    for number, node in enumerate(access.nodes, 1):
        path = folder / f"mas{number}" / "nats.conf"
        made = _conf(folder, path.parent / "data", f"mas{number}", access, node)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(made)), mode=SECRET)
        commands.append(f"nats-server -c {path}")
    return commands


def _conf(folder: Path, data: Path, name: str, access: Access, node: str) -> dict[str, Any]:
    conf: dict[str, Any] = {
        "server_name": name,
        "listen": "127.0.0.1:-1",  # NATS' own clients: none are served
        "max_payload": MAX_PACKET_BYTES,
        "max_connections": MAX_CONNECTIONS,
        "jetstream": {"store_dir": str(data)},
        "mqtt": {
            "listen": access.listener(node),
            "tls": {"cert_file": str(folder / "broker.pem"), "key_file": str(folder / "broker.key")},
            "max_ack_pending": 100,
            "ack_wait": "60s",
        },
        "authorization": {"users": [_user(user) for user in access.users]},
    }
    if access.is_cluster:
        conf["cluster"] = {
            "name": "mas",
            "listen": f"{node}:{ROUTES_PORT}",
            "routes": [f"nats://{other}:{ROUTES_PORT}" for other in access.nodes if other != node],
        }
        conf["mqtt"]["stream_replicas"] = conf["mqtt"]["consumer_replicas"] = len(access.nodes)
    return conf


def _user(user: User) -> dict[str, Any]:
    return {
        "user": user.name,
        "password": user.password,
        "allowed_connection_types": ["MQTT"],
        "permissions": {
            "publish": {"allow": [_subject(each) for each in user.writes]},
            "subscribe": {"allow": [*(_subject(each) for each in user.reads), "$MQTT.sub.>"]},
        },
    }


def _subject(topic_filter: str) -> str:
    return topic_filter.translate({ord("/"): ".", ord("+"): "*", ord("#"): ">"})
