"""RabbitMQ's configuration, of one node or of a cluster. The files are for its own account.

NODE/rabbitmq-env.conf     the node's name and folders, which the environment variable RABBITMQ_CONF_ENV_FILE names
NODE/rabbitmq.conf         listener, certificate, cluster
NODE/enabled_plugins       MQTT
definitions.json           users and what each may touch, read at each start
cookie                     the secret by which nodes know each other: .erlang.cookie in each account's home

RabbitMQ's levels of a topic are parted by dots, and so are the patterns of its permissions.
"""

import base64
import hashlib
import ipaddress
import re
import secrets
from pathlib import Path
from typing import Any

import msgspec

from broker_server.server.brokers.access import SECRET, Access, User, settings
from edge_runtime.wire.files import write_atomic

DISTRIBUTION_PORT = 25672
"""Where nodes speak to each other, and one more for each further node: several may be on one machine."""
_VHOST = "/"
_EXCHANGE = "amq.topic"


def write(folder: Path, access: Access) -> list[str]:
    """Write the files; return the commands that start the broker. Raises BrokerUnfit; OSError."""
    access.check_passwords("RabbitMQ")
    access.check_names("RabbitMQ")
    access.write_certificate(folder)
    write_atomic(
        folder / "definitions.json", msgspec.json.format(msgspec.json.encode(_definitions(access))), mode=SECRET
    )
    cookie = folder / "cookie"
    if not cookie.exists():
        write_atomic(cookie, secrets.token_hex(32).encode(), mode=0o400)
    return [_node(folder, access, number) for number in range(len(access.nodes))]


def _node(folder: Path, access: Access, number: int) -> str:
    """Write one node's files; return the command that starts it."""
    own = folder / _name(access, number).partition("@")[0]
    listener = access.listener(access.nodes[number])
    is_address = _is_address(listener.rpartition(":")[0])
    values: dict[str, object] = {
        "listeners.tcp": "none",
        "mqtt.listeners.tcp": "none",
        "mqtt.listeners.ssl.default": listener if is_address else access.port,
        "mqtt.allow_anonymous": "false",
        "mqtt.vhost": _VHOST,
        "mqtt.exchange": _EXCHANGE,
        "mqtt.prefetch": 20,
        "mqtt.durable_queue_type": "quorum",
        "ssl_options.cacertfile": folder / "ca.pem",
        "ssl_options.certfile": folder / "broker.pem",
        "ssl_options.keyfile": folder / "broker.key",
        "ssl_options.verify": "verify_none",
        "ssl_options.fail_if_no_peer_cert": "false",
        "ssl_options.versions.1": "tlsv1.2",
        "load_definitions": folder / "definitions.json",
        "log.file.level": "info",
    }
    if access.is_cluster:
        values["cluster_formation.peer_discovery_backend"] = "classic_config"
        values["cluster_partition_handling"] = "pause_minority"
        for other in range(len(access.nodes)):
            values[f"cluster_formation.classic_config.nodes.{other + 1}"] = _name(access, other)
    environment = {
        "NODENAME": _name(access, number),
        "USE_LONGNAME": "true",
        "CONFIG_FILE": own / "rabbitmq.conf",
        "ENABLED_PLUGINS_FILE": own / "enabled_plugins",
        "MNESIA_BASE": own / "data",
        "LOG_BASE": own / "log",
        "DIST_PORT": DISTRIBUTION_PORT + number,
    }
    write_atomic(own / "rabbitmq.conf", settings(values))
    write_atomic(own / "enabled_plugins", b"[rabbitmq_mqtt].\n")
    write_atomic(own / "rabbitmq-env.conf", "".join(f"{key}={value}\n" for key, value in environment.items()).encode())
    return f"RABBITMQ_CONF_ENV_FILE={own / 'rabbitmq-env.conf'} rabbitmq-server"


def _name(access: Access, number: int) -> str:
    """Return a node's name; one alone is its machine's, whatever others call it."""
    return f"mas{number + 1}@{access.nodes[number] if access.is_cluster else '127.0.0.1'}"


def _definitions(access: Access) -> dict[str, Any]:
    return {
        "vhosts": [{"name": _VHOST}],
        "users": [
            {
                "name": user.name,
                "password_hash": password_hash(user.password),
                "hashing_algorithm": "rabbit_password_hashing_sha512",
                "tags": "",
            }
            for user in access.users
        ],
        "permissions": [{"user": user.name, "vhost": _VHOST} | _resources(user) for user in access.users],
        "topic_permissions": [
            {
                "user": user.name,
                "vhost": _VHOST,
                "exchange": _EXCHANGE,
                "write": _pattern(user.writes),
                "read": _pattern(user.reads),
            }
            for user in access.users
        ],
    }


def password_hash(password: str) -> str:
    """Return a password as RabbitMQ keeps it: SHA-512 behind four bytes of salt."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha512(salt + password.encode()).digest()).decode()


def _resources(user: User) -> dict[str, str]:
    """Return the permissions: a client's own queue, and the exchange that all topics are in."""
    queue = f"mqtt-subscription-{re.escape(user.client_id)}qos[01]"
    both = f"^({queue}|{re.escape(_EXCHANGE)})$"
    return {"configure": f"^{queue}$", "write": both, "read": both}


def _pattern(filters: tuple[str, ...]) -> str:
    """Return the regular expression for the routing keys of some filters, and for the filters themselves."""
    return f"^({'|'.join(map(_level_pattern, filters))})$"


def _level_pattern(topic_filter: str) -> str:
    levels = {"+": r"[^.]+", "#": ".+"}
    return r"\.".join(levels.get(level, re.escape(level)) for level in topic_filter.split("/"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
