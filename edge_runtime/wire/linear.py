"""Linear models in bundles and plans: a bundle without graphs, whose one task is w·x, and what a round asks for.

The model of a device is one vector w (d,). What it sends is a vector too: b = Xᵀα/n of its dual variables, the gradient
of its loss, where a step along it leads, or, once, the statistics A and b. They travel as weights do, as safetensors.
"""

# coverage: every branch

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_runtime.wire.tensors import MAX_ENTRY_BYTES, TensorTable

LossName = Literal["hinge", "squared", "half_squared", "logistic"]
OF_CLASSES: frozenset[LossName] = frozenset({"hinge", "logistic"})
"""Losses of two classes, whose labels are 0 and 1 in a data set and -1 and 1 in a formula."""
FEATURES = "features"
"""The input of a linear model, and its file in a data set."""
Bounded = Annotated[float, Meta(ge=0, le=1e18)]


class LinearModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A manifest's model where it has no graphs: w·x with this loss."""

    loss: LossName


class DualSteps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dual"):
    """Steps of dual coordinate ascent; the answer is b = Xᵀα/n (d,)."""

    curvature: Annotated[float, Meta(gt=0, le=1e18)]
    """ρσ_tt/λ."""
    passes: Annotated[float, Meta(ge=0, le=1e6)]
    """The device's budget, in passes over its samples; with 0 it measures alone."""
    since: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    """The round of this device's dual variables that the weights are made of; None where it has sent none."""


class GradientStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gradient"):
    """The gradient of the device's loss at the weights; the answer is (d,)."""


class ForwardStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="forward"):
    """A step along the gradient from the weights; the answer is where it leads, (d,)."""

    step: Annotated[float, Meta(ge=0, le=1e18)]
    """Its length; 0 for a device that measures alone, because no constant is known yet."""


class StreamStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stream"):
    """The subgradients of the next samples of a stream, which begins again at its end; the answer is their sum."""

    first: Annotated[int, Meta(ge=0, le=2**53)]
    count: Annotated[int, Meta(ge=1, le=2**31)]


class MixedEffectPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mixed_effect"):
    """The statistics of the mixed-effect model; the answer is A's lower triangle and b."""

    shared: Annotated[float, Meta(gt=0, le=1)]
    ridge: Annotated[float, Meta(gt=0, le=1e9)]
    width: Annotated[float, Meta(gt=0, le=1e9)]


LinearWork = DualSteps | GradientStep | ForwardStep | StreamStep | MixedEffectPart


class LinearFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device reports of its part of a round, before its steps and with the weights that it was sent."""

    steps: Annotated[int, Meta(ge=0, le=2**53)]
    """Steps on samples that it has made since."""
    gap: Bounded | None = None
    """Its part of the duality gap."""
    smoothness: Bounded | None = None
    """The Lipschitz constant of its gradient; None for a loss that has none."""


def answer_table(weights: TensorTable, work: LinearWork) -> TensorTable:
    """Return the layout of what a device answers, given that of the weights that it is sent."""
    if not isinstance(work, MixedEffectPart):
        return weights
    size = weights.size
    return TensorTable.of({"a": (size * (size + 1) // 2,), "b": (size,)})


def answer_bytes(weights_bytes: int) -> int:
    """Return the most bytes that statistics may have where the weights' file has so many."""
    size = weights_bytes // 4
    return 4 * (size * (size + 1) // 2 + size) + 2 * MAX_ENTRY_BYTES
