"""Enrolling a device: its agent.toml, with a token and a code of its own and the server's public key to pin.

What the device was given before, if it was enrolled before, is worth nothing from then on.
"""

import json
import re
import socket
from pathlib import Path

from broker_server.server.audit import AuditLog
from broker_server.server.brokers.access import SERVER_USER
from broker_server.server.certificates import Certificates
from broker_server.server.device_certificates import DeviceCertificates
from broker_server.server.enrolments import Enrolments
from broker_server.server.keys import load_or_create, signing_key
from broker_server.server.state import has_own_certificate, read_url
from devices.cli.settings import Tree, build, settings_of
from edge_runtime.agent.config import AgentConfig
from edge_runtime.wire import tokens
from edge_runtime.wire.broker_url import BrokerUrl
from edge_runtime.wire.errors import TokenRefused
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.names import is_device_id
from edge_runtime.wire.signing import public_hex

SECRET = 0o600
DAY_S = 86_400.0
DEFAULT_PORT = 8883
WRITTEN = ("device", "federation", "url", "token", "code", "certificate", "server_key", "ca", "state")
"""The keys of agent.toml that enrolling decides."""
DEVICE_SETTINGS = tuple(each for each in settings_of(AgentConfig) if each.key not in WRITTEN)
"""The keys that whoever enrols may give."""
_URL = re.compile(r"mqtts?://[^/\s@]+\Z")
_UNSPECIFIED = {"", "0.0.0.0", "::"}  # noqa: S104


class EnrolmentRefused(ValueError):
    """The device cannot be enrolled so; the sentence says why."""


def enrol(
    device: str,
    out: Path,
    *,
    state: Path,
    federation: str,
    url: str | None = None,
    days: float = 365.0,
    force: bool = False,
    **settings: object,
) -> None:
    """Write a device's configuration to `out`, readable by its owner alone.

    `settings` are further keys of agent.toml (edge_runtime.agent.config); paths are the device's, relative to the file.
    Raises EnrolmentRefused for a file that is there already (unless `force`), a URL or a lifetime that cannot be;
    ConfigInvalid for a setting that agent.toml does not take; TokenRefused for a name that may not be one; KeyInvalid.
    """
    if out.exists() and not force:
        raise EnrolmentRefused(f"{out} exists already: give --force to replace it, with a new token")
    if not days > 0:
        raise EnrolmentRefused(f"a token cannot be valid for {days:g} days: give a number of days above 0")
    url = url or read_url(state) or f"mqtts://{own_address()}:{DEFAULT_PORT}"
    if not _URL.match(url):
        raise EnrolmentRefused(f"{url!r} is not a broker's URL: write mqtts://host:port or mqtt://host:port")
    where = BrokerUrl.parse(url)
    if not where.tls and not where.is_here and not settings.get("insecure"):
        raise EnrolmentRefused(
            f"{url} is without TLS, so its token and the weights would cross the network in the clear: write mqtts://, "
            "or allow it by --insecure"
        )
    if where.tls and settings.get("ca_file") is None and has_own_certificate(state):
        settings["ca"] = Certificates(state).ca_pem()
    key = load_or_create(state)
    if not is_device_id(device):
        raise TokenRefused(f"{device[:80]!r} cannot name a device: letters, digits and . _ - are for names")
    if device == SERVER_USER:
        raise EnrolmentRefused(f"{device} is the server's own name on brokers of others: take another for the device")
    entries: Tree = {
        "device": device,
        "federation": federation,
        "url": url,
        "token": "…",
        "code": "0" * 32,
        "server_key": public_hex(signing_key(state)),
        "data": "data",
        "state": "state",
        **{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
    }
    build(AgentConfig, [(str(out), entries)])  # what the device would refuse changes nothing
    enrolments = Enrolments(state)
    enrolment = enrolments.enrol(device)
    entries["code"] = enrolment.code
    entries["token"] = token = tokens.issue(
        key,
        name=device,
        federation=federation,
        role="device",
        lifetime_s=days * DAY_S,
        generation=enrolment.generation,
    )
    if where.tls:
        entries["certificate"] = DeviceCertificates(state).first(device, enrolment.generation)
    AuditLog(state).add("enrolled", device=device, why=f"generation {enrolment.generation}")
    enrolments.set_token(device, enrolment.generation, token)
    text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in entries.items())
    write_atomic(out, text.encode(), mode=SECRET)


def own_address(host: str = "") -> str:
    """Return the address at which other machines find this one, as far as it is known; `host` if that names one."""
    if host not in _UNSPECIFIED:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address a packet would leave from
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
