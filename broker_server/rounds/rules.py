"""The settings of rounds: who takes part in one, and how long it waits."""

# coverage: every branch

from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.training import COMMON


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices of a round and its deadline: the table [rounds] of server.toml."""

    min_devices: Annotated[
        int, Meta(ge=1, le=100_000, description="devices online before a round begins", extra=COMMON)
    ] = 2
    clients_per_round: Annotated[
        int, Meta(ge=0, le=100_000, description="devices drawn for a round of training; 0 for all", extra=COMMON)
    ] = 0
    quorum: Annotated[
        int, Meta(ge=0, le=100_000, description="results that a round needs; 0 for half", extra=COMMON)
    ] = 0
    deadline_s: Annotated[
        float,
        Meta(gt=0, le=1e7, description="longest that a round waits", extra={**COMMON, "flag": "--round-deadline-s"}),
    ] = 3600.0
    grace_s: Annotated[
        float, Meta(ge=0, le=1e7, description="longest that a round waits for a member that is away, with a quorum")
    ] = 120.0
    over_selection: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="share of devices drawn beyond clients_per_round: the first clients_per_round results close",
        ),
    ] = 0.0
    deadline_factor: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="a round's deadline is this many times what most devices took before, deadline_s at most; "
            "0 for deadline_s alone",
        ),
    ] = 0.0
    deadline_quantile: Annotated[
        float, Meta(gt=0, le=1, description="the share of answers that deadline_factor takes for most")
    ] = 0.9
