"""The settings of the broker that the server starts: [broker] of server.toml."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_server.mqtt.limits import Limits
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire.blob import MESSAGE_BYTES
from edge_runtime.wire.broker_url import is_loopback
from edge_runtime.wire.training import COMMON

HostName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9:._-]{1,253}\Z")]


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker that the server starts."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="address to listen on", extra=COMMON)] = (
        "0.0.0.0"  # noqa: S104  (every device has a token)
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 for any", extra=COMMON)] = 8883
    tls: Annotated[
        Literal["auto", "always", "insecure"],
        Meta(
            description="auto: TLS off this machine, and with client_certificates; insecure: tokens and weights cross "
            "the network in the clear"
        ),
    ] = "auto"
    client_certificates: Annotated[
        bool,
        Meta(
            description="let in those alone who have the certificate of their device, which the server gives them and "
            "renews; on Mosquitto by `broker-config`"
        ),
    ] = False
    host_names: Annotated[
        tuple[HostName, ...],
        Meta(
            description="further names and addresses of this machine, for its certificate",
            extra={"flag": "--host-name"},
        ),
    ] = ()
    token_s: Annotated[
        float,
        Meta(
            ge=60,
            le=31_536_000,
            description="life of a device's token and of its connection; the server gives it another, for its key",
        ),
    ] = 43_200.0
    clients: Annotated[
        int, Meta(ge=1, le=100_000, description="devices and other clients that may be connected at once")
    ] = Limits().clients
    queue_bytes: Annotated[
        int,
        Meta(
            ge=4 << 20,
            le=1 << 30,
            description="what may wait for one client, in memory; whoever sends it more is held back",
        ),
    ] = Limits().queue_bytes
    stall_s: Annotated[
        float, Meta(gt=0, le=86_400, description="how long a client that does not read may hold others back")
    ] = Limits().stall_s
    chunk_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=1 << 20,
            description="most bytes of a file in one message; halved by itself for a broker that takes less",
        ),
    ] = MESSAGE_BYTES
    lock_out_clones: Annotated[
        bool,
        Meta(description="revoke a device that turns out to be two cards with one key, in place of naming it alone"),
    ] = False
    certificate: Annotated[Path | None, Meta(description="certificate (PEM) in place of the server's own")] = None
    key: Annotated[Path | None, Meta(description="the certificate's key (PEM)")] = None

    @property
    def limits(self) -> Limits:
        """What a client can make the broker bear."""
        sessions = max(Limits().sessions, 2 * self.clients)
        return Limits(clients=self.clients, sessions=sessions, queue_bytes=self.queue_bytes, stall_s=self.stall_s)

    @property
    def is_tls(self) -> bool:
        """Return whether the broker speaks TLS, and nothing else."""
        if self.certificate is not None or self.tls != "auto":
            return self.tls != "insecure"
        return self.client_certificates or not is_loopback(self.host)

    def check(self) -> None:
        """Raise ConfigInvalid for settings that do not go together."""
        if (self.certificate is None) != (self.key is None):
            alone, other = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise ConfigInvalid(f"broker.{alone}: for TLS the broker needs a {other} as well")
        if self.certificate is not None and self.tls == "insecure":
            raise ConfigInvalid("broker.tls: insecure and a certificate do not go together: leave one of them out")
        if self.client_certificates and self.tls == "insecure":
            raise ConfigInvalid("broker.client_certificates: they are shown over TLS alone: leave out tls = insecure")
