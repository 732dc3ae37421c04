"""What a plan has cost a device, as its messages carry it. null is what was not measured; it is never 0."""

# coverage: every branch

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Phase = Literal["download", "train", "probe", "evaluate", "upload", "idle"]
"""What a device is doing with its plan; `idle` is waiting: for the link, the server, or old work to stop."""
MAX_J = 1e12
MAX_W = 1e6
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Joules = Annotated[float, Meta(ge=0, le=MAX_J)]
Watts = Annotated[float, Meta(ge=0, le=MAX_W)]
Hertz = Annotated[float, Meta(ge=0, le=1e12)]
Celsius = Annotated[float, Meta(ge=-273.15, le=1000)]
Flag = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z")]
MAX_SOURCE = 200
MAX_COVERS = 500
MAX_FLAGS = 16


class PhaseEnergy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One phase of a plan. `uncertainty_j` is a bound on the error of `energy_j`."""

    seconds: Seconds
    energy_j: Joules | None
    uncertainty_j: Joules | None


class Energy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan's energy on one device, from its arrival on, and how the board was meanwhile.

    `energy_j` is over all phases. `source` and `covers` say what measured it and what that includes, null where nothing
    measures; with `estimated` the figures come from a model. `measured_s` of the `seconds` lie between readings,
    `gap_s` of these bridge gaps. `idle_w` is the idle board before the work, by the same source. `throttled` names
    what held the board back; empty: nothing did, null: the board does not say.
    """

    source: Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE)] | None
    covers: Annotated[str, Meta(max_length=MAX_COVERS)] | None
    estimated: bool
    energy_j: Joules | None
    uncertainty_j: Joules | None
    idle_w: Watts | None
    sample_rate_hz: Hertz | None
    seconds: Seconds
    measured_s: Seconds
    gap_s: Seconds
    phases: dict[Phase, PhaseEnergy]
    temperature_max_c: Celsius | None
    cpu_min_hz: Hertz | None
    throttled: Annotated[tuple[Flag, ...], Meta(max_length=MAX_FLAGS)] | None

    def __post_init__(self) -> None:
        if self.source is None and (self.energy_j is not None or self.estimated):
            raise ValueError("an energy that was measured or estimated names its `source`")
