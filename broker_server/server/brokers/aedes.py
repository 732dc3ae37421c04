"""A broker made with aedes for Node.js, and its configuration. The files are for its own account.

aedes.mjs      the program: `npm install aedes` in its folder gives it what it needs
aedes.json     where it listens, and who may touch what; a secret
"""

from importlib.resources import files
from pathlib import Path

import msgspec

from broker_server.server.brokers.access import (
    MAX_CONNECTIONS,
    SECRET,
    Access,
    BrokerUnfit,
    password_hash,
)
from edge_runtime.wire.files import write_atomic


def write(folder: Path, access: Access) -> list[str]:
    """Write the files; return the commands that start the broker. Raises BrokerUnfit; OSError."""
    if access.is_cluster:
        raise BrokerUnfit("aedes forms a cluster with a database alone: take rabbitmq or nats, or leave out --cluster")
    access.check_passwords("aedes")
    access.write_certificate(folder)
    conf = {
        "port": access.port,
        "connections": MAX_CONNECTIONS,
        "users": {
            user.name: {
                "client": user.client_id,
                "password": password_hash(user.password),
                "writes": user.writes,
                "reads": user.reads,
            }
            for user in access.users
        },
    }
    write_atomic(folder / "aedes.json", msgspec.json.format(msgspec.json.encode(conf)), mode=SECRET)
    write_atomic(folder / "aedes.mjs", files(__package__).joinpath("aedes.mjs").read_bytes())
    return [f"npm install --prefix {folder} aedes@1", f"node {folder / 'aedes.mjs'}"]
