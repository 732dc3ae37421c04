"""TLS of the broker: what it shows its clients, and what it makes of what they show.

Clients' certificates are checked in the handshake, by the CA alone; whose they are is compared with the token.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path

from broker_server.mqtt.auth import Certified


class TlsUnusable(ValueError):
    """The files are not a certificate and its key, or certificates to trust."""


def server_context(certificate_file: Path, key_file: Path | None, client_ca_file: Path | None) -> ssl.SSLContext:
    """Return the context of a broker, which asks for certificates of `client_ca_file`'s CA. Raises TlsUnusable."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate_file, key_file)
    except (OSError, ssl.SSLError) as exc:
        raise TlsUnusable(f"{certificate_file} and {key_file} are not a PEM certificate and its key: {exc}") from exc
    if client_ca_file is not None:
        try:
            context.load_verify_locations(client_ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise TlsUnusable(f"{client_ca_file} has no PEM certificates: {exc}") from exc
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def certified(shown: Mapping[str, object] | None) -> Certified | None:
    """Return whom a checked certificate is for, as `getpeercert` shows it; None for none, or one of another form."""
    subject = (shown or {}).get("subject", ())
    assert isinstance(subject, tuple)
    parts = {kind: value for part in subject for kind, value in part}
    generation = str(parts.get("serialNumber", ""))
    if "commonName" not in parts or not (generation.isascii() and generation.isdecimal()):
        return None
    return Certified(str(parts["commonName"]), int(generation))
