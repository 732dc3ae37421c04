"""A broker of others that the server uses in place of its own."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.server.brokers.access import SERVER_USER, server_client_id
from broker_server.server.certificates import Certificates
from broker_server.server.config import ServerConfig
from broker_server.server.state import StateFolder
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire import tokens
from edge_runtime.wire.broker_url import BrokerUrl
from edge_runtime.wire.connection_fault import Ends
from edge_runtime.wire.link import Connected, Link
from edge_runtime.wire.mqtt import MqttLink

BROKER = Ends(
    peer="broker",
    here="machine",
    trusting="name the certificates to trust with --ca-file",
    makes_certificates=False,
)
"""What a broker of others is to the server."""
TOKEN_S = 3600.0
"""The life of the token that it gets; each connection is made with a new one."""
STRANGER_S = 3.0
"""How long it may take to let a stranger in."""


@contextlib.contextmanager
def other_broker(
    config: ServerConfig,
    key: Ed25519PrivateKey,
    folder: StateFolder,
    say: Callable[[str], None],
    *,
    url: str,
    token: str | None,
    ca_file: Path | None,
) -> Iterator[Link]:
    """Connect until the end of the block, and say where. Without a `token` the server signs its own.

    Raises ConfigInvalid, LinkInvalid; OSError as the file system does.
    """
    where = BrokerUrl.parse(url)
    if not where.tls and not where.is_here and config.broker.tls != "insecure":
        raise ConfigInvalid(
            f"{url} is without TLS, so weights would cross the network in the clear: write mqtts://, or allow it by "
            "--tls insecure"
        )

    def password() -> str:
        return token or tokens.issue(
            key, name=SERVER_USER, federation=config.federation, role="server", lifetime_s=TOKEN_S
        )

    link = MqttLink(
        url,
        client_id=server_client_id(config.federation),
        username=SERVER_USER,
        password=password,
        ca_file=ca_file,
        certificate_file=(
            Certificates(config.state).own_client(SERVER_USER)
            if where.tls and config.broker.client_certificates
            else None
        ),
        clean_session=not where.is_cluster,
        ends=BROKER,
    )
    with contextlib.closing(link):
        is_own = ca_file is not None and ca_file.read_text() == Certificates(config.state).ca_pem()
        folder.set_url(url, certificate="own" if is_own else "other")
        say(f"federation {config.federation!r} on the broker at {url}; state in {config.state}")
        if _lets_strangers_in(url, ca_file):
            say(
                "WARNING: this broker lets anybody in: who does can read weights and make devices look offline, though "
                "not speak for them; `broker-config` writes a configuration that does not"
            )
        yield link


def _lets_strangers_in(url: str, ca_file: Path | None) -> bool:
    """Return whether a broker takes a connection by a name and a password that somebody has made up."""
    name = f"stranger-{secrets.token_hex(8)}"
    link = MqttLink(url, client_id=name, username=name, password=name, ca_file=ca_file, clean_session=True)
    try:
        return isinstance(link.receive(STRANGER_S), Connected)
    finally:
        link.close(linger_s=0.0)
