"""The broker that the server starts: whom it lets in, where it listens, and its certificate, made again in time."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.mqtt.auth import TokenAuthorizer
from broker_server.mqtt.broker import EmbeddedBroker
from broker_server.mqtt.stats import Stats
from broker_server.mqtt.tls import TlsUnusable
from broker_server.server.certificates import Certificates, CertificatesInvalid
from broker_server.server.config import ServerConfig
from broker_server.server.enrol import own_address
from broker_server.server.enrolments import Enrolments
from broker_server.server.state import StateFolder
from broker_server.server.token_renewal import TokenRenewal
from edge_runtime.wire.link import Link

_LOG = logging.getLogger("broker_server")
PORT_SEARCH = 20
"""The ports that are tried after one that is in use."""
RENEWAL_S = 86_400.0
"""The time between two looks at the age of the broker's certificate."""


@dataclass(frozen=True, kw_only=True)
class OwnBroker:
    """A broker that runs. `renewal` renews the tokens of those that it lets in."""

    url: str
    link: Link
    stats: Stats
    renewal: TokenRenewal


def certificate_names(config: ServerConfig) -> set[str]:
    """Return the names and addresses of this machine that the server's own certificate is for."""
    names = {"localhost", "127.0.0.1", socket.gethostname(), own_address(config.broker.host)}
    return names | set(config.broker.host_names)


@contextlib.contextmanager
def own_broker(
    config: ServerConfig,
    key: Ed25519PrivateKey,
    folder: StateFolder,
    say: Callable[[str], None],
    *,
    on_login: Callable[[str, str | None], None],
    on_handshake_failed: Callable[[str, str], None],
) -> Iterator[OwnBroker]:
    """Run the broker until the end of the block, and say where.

    `on_login` and `on_handshake_failed` hear, on the broker's thread, who came and why it was refused, as
    TokenAuthorizer and EmbeddedBroker say it. Raises BrokerNotStarted, CertificatesInvalid; OSError as the file
    system does.
    """
    enrolments = Enrolments(config.state)
    authorizer = TokenAuthorizer(
        key.public_key(),
        config.federation,
        now=time.time,
        is_current=enrolments.is_current,
        on_login=on_login,
        life_s=config.broker.token_s,
        has_key=enrolments.has_key,
        needs_certificate=config.broker.client_certificates,
    )
    own = None
    if config.broker.is_tls and config.broker.certificate is None:
        certificates = Certificates(config.state)
        own = certificates.server(certificate_names(config))
        if fault := certificates.clock_fault():
            say(f"WARNING: {fault}")
    broker = EmbeddedBroker(
        authorizer,
        limits=config.broker.limits,
        on_handshake_failed=on_handshake_failed,
        certificate_file=config.broker.certificate if own is None else own.certificate,
        key_file=config.broker.key if own is None else own.key,
        client_ca_file=Certificates(config.state).ca_file() if config.broker.client_certificates else None,
    )
    port = broker.start(config.broker.host, config.broker.port, search=PORT_SEARCH)
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        if config.broker.port not in {0, port}:
            say(f"port {config.broker.port} is in use: {port} is taken instead")
        scheme = "mqtts" if config.broker.is_tls else "mqtt"
        url = f"{scheme}://{own_address(config.broker.host)}:{port}"
        folder.set_url(url, certificate="other" if own is None else "own")
        if config.broker.tls == "insecure":
            say("INSECURE (broker.tls): tokens and weights cross the network in the clear, for anyone to take")
        say(f"federation {config.federation!r} listens on {config.broker.host}:{port}; state in {config.state}")
        link = broker.link()
        stack.callback(link.close)
        if own is not None:
            stack.callback(_CertificateRenewal(broker, config).stop)
        renewal = TokenRenewal(key, config.federation, authorizer, life_s=config.broker.token_s, clock=time.monotonic)
        yield OwnBroker(url=url, link=link, stats=broker.stats, renewal=renewal)


class _CertificateRenewal:
    """Makes the broker's certificate again while the server runs, looking once in RENEWAL_S."""

    def __init__(self, broker: EmbeddedBroker, config: ServerConfig) -> None:
        self._broker, self._config = broker, config
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(RENEWAL_S):
            self._look()

    def _look(self) -> None:
        try:
            made = Certificates(self._config.state).server(certificate_names(self._config))
            if made.is_new:
                self._broker.renew(made.certificate, made.key)
        except (OSError, CertificatesInvalid, TlsUnusable) as exc:
            _LOG.warning("the certificate could not be made again: %s", exc)
