"""The address of a broker, and whom to trust there."""

# coverage: every branch

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edge_runtime.wire.errors import WireError, reason

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class LinkInvalid(WireError):
    """A broker's URL or the certificate file for it cannot be used."""


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, as it calls itself: what is sent there is on no network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class BrokerUrl:
    """The address of a broker."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, url: str) -> "BrokerUrl":
        """Parse `mqtt://host[:port]` or `mqtts://host[:port]`. Raises LinkInvalid."""
        example = "write mqtt://host:1883 or mqtts://host:8883"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise LinkInvalid(f"broker URL has a bad host or port: {example}") from exc
        if parts.username is not None or parts.password is not None:
            # The URL is not repeated in the message, because it holds a secret.
            raise LinkInvalid(f"a broker URL carries no user and no password: {example}")
        if parts.scheme not in _PORTS or not host or port == 0 or parts.path not in {"", "/"} or parts.query:
            raise LinkInvalid(f"{url[:200]!r} is not a broker URL: {example}")
        return cls(host, port or _PORTS[parts.scheme], parts.scheme == "mqtts")


def tls_context(ca_file: Path | None, ca_pem: str | None) -> ssl.SSLContext:
    """Return what to trust at an mqtts:// address: the certificates given, or the system's. Raises LinkInvalid."""
    try:
        context = ssl.create_default_context(cafile=ca_file, cadata=ca_pem)
    except (OSError, ValueError) as exc:  # TLS errors are OSErrors
        raise LinkInvalid(f"{ca_file or 'ca'} has no PEM certificates: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def show_certificate(context: ssl.SSLContext, file: Path) -> None:
    """Show an end's own certificate, which is in a file (PEM) with its key, from now on. Raises LinkInvalid."""
    try:
        context.load_cert_chain(file)
    except OSError as exc:  # TLS errors are such
        raise LinkInvalid(f"{file} has no PEM certificate and its key: {reason(exc)}") from exc
