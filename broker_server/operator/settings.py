"""Settings of what a server shows: [metrics] and [page] of server.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics for Prometheus."""

    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        Meta(
            description="port of http://HOST:PORT/metrics, for Prometheus (default: none)",
            extra={"flag": "--metrics"},
        ),
    ] = None
    host: Annotated[
        str, Meta(min_length=1, max_length=255, description="address of it; whoever reaches it may read")
    ] = "127.0.0.1"
    devices: Annotated[bool, Meta(description="series for each device as well, of which there may be a thousand")] = (
        False
    )


class PageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The live page."""

    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        Meta(description="port of the live page, http://HOST:PORT/ (default: none)", extra={"flag": "--page"}),
    ] = None
    host: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            description="address of it; other than this machine's own: by TLS, and with a login for everything",
        ),
    ] = "127.0.0.1"
