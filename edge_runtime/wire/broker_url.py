"""The addresses of a broker, and whom to trust there."""

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
    """Where a broker is: its address, or those of the nodes of a cluster, each a host and a port."""

    addresses: tuple[tuple[str, int], ...]
    tls: bool

    @property
    def is_here(self) -> bool:
        """Return whether what is sent there is on no network."""
        return all(is_loopback(host) for host, _ in self.addresses)

    @property
    def is_cluster(self) -> bool:
        """Return whether there are several nodes."""
        return len(self.addresses) > 1

    @classmethod
    def parse(cls, url: str) -> "BrokerUrl":
        """Parse `mqtt://host[:port]` or `mqtts://host[:port]`, with more hosts behind commas. Raises LinkInvalid."""
        example = "write mqtt://host:1883 or mqtts://host:8883, or for a cluster mqtts://host-1:8883,host-2:8883"
        scheme, separator, rest = url.partition("://")
        addresses = []
        for one in rest.removesuffix("/").split(","):
            try:
                parts = urlsplit(f"{scheme}{separator}{one}")
                host, port = parts.hostname, parts.port
            except ValueError as exc:
                raise LinkInvalid(f"broker URL has a bad host or port: {example}") from exc
            if parts.username is not None or parts.password is not None:
                # The URL is not repeated in the message, because it holds a secret.
                raise LinkInvalid(f"a broker URL carries no user and no password: {example}")
            if scheme not in _PORTS or not host or port == 0 or parts.path or parts.query or parts.fragment:
                raise LinkInvalid(f"{url[:200]!r} is not a broker URL: {example}")
            addresses.append((host, port or _PORTS[scheme]))
        return cls(tuple(addresses), scheme == "mqtts")


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
