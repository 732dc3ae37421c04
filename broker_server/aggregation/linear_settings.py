"""Settings of the rules for linear models: [linear] of server.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta

from broker_server.aggregation.proximal_maps import Regulariser
from edge_runtime.wire.names import DeviceId

Passes = Annotated[float, Meta(ge=0, le=1e6)]


class LinearSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules for linear models: the table [linear] of server.toml."""

    ridge: Annotated[
        float,
        Meta(gt=0, le=1e9, description="lambda: how strongly weights are regularised, or with mixed_effect noise"),
    ] = 0.01
    passes: Annotated[
        Passes, Meta(description="with mocha, dmtrl: a device's budget in a round, in passes over its data")
    ] = 1.0
    passes_of: Annotated[
        dict[DeviceId, Passes],
        Meta(max_length=100_000, description="with mocha: budgets of single devices; 0 sits the round out"),
    ] = {}
    relation_rounds: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="with mocha, dmtrl: rounds for each covariance of the devices; 0 leaves them unrelated",
        ),
    ] = 10
    regulariser: Annotated[
        Regulariser,
        Meta(description="with proximal_mtl, amtl: low rank, features in common, few features, near the mean"),
    ] = "trace"
    relaxation: Annotated[
        float, Meta(gt=0, lt=1, description="with amtl: how far a column moves, before delays are taken into account")
    ] = 0.9
    dynamic_step: Annotated[bool, Meta(description="with amtl: longer steps for devices that are rarely heard")] = True
    window: Annotated[
        int, Meta(ge=1, le=2**31, description="with online_primal_dual: samples of a device's stream in a round")
    ] = 1
    radius: Annotated[
        float, Meta(gt=0, le=1e9, description="with online_primal_dual: the largest nuclear norm of all weights")
    ] = 10.0
    online_rate: Annotated[
        float, Meta(gt=0, le=1e9, description="with online_primal_dual: the weight of what was seen so far")
    ] = 0.5
    shared: Annotated[
        float, Meta(gt=0, le=1, description="with mixed_effect: how much is shared; 1 is one model for all")
    ] = 0.5
    width: Annotated[float, Meta(gt=0, le=1e9, description="with mixed_effect: the private kernel's width")] = 1.0
