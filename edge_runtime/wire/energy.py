"""The energy of a plan on a device: one type for the device's account, its messages, the server and the report.

null is a figure that was not measured; it is never 0.
"""

# coverage: every branch

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from devices.cli.text import PRINTABLE, printable

Phase = Literal["download", "train", "probe", "evaluate", "upload", "idle"]
"""The activity of a device on a plan; `idle` is waiting: for the link, the server, or old work to stop."""
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
    """The energy of a plan on one device since the plan arrived, and the board's conditions meanwhile.

    `energy_j` is over all phases. `source` and `covers` name the meter and the parts of the board that it includes;
    they are null without a meter. With `estimated`, the figures come from a model. `measured_s` of the `seconds` lie
    between readings, and `gap_s` of these bridge gaps. `idle_w` is the power of the idle board before the work, by the
    same source. `throttled` names what held the board back; empty: nothing did, null: the board does not state it.
    """

    source: Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE, pattern=PRINTABLE)] | None
    covers: Annotated[str, Meta(max_length=MAX_COVERS, pattern=PRINTABLE)] | None
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

    @property
    def above_idle_j(self) -> float | None:
        """The energy without the idle board's power over the same time; None without a baseline."""
        return above_idle_j(self.energy_j, self.idle_w, self.seconds)


def above_idle_j(energy_j: float | None, idle_w: float | None, seconds: float) -> float | None:
    """Return the part of an energy that the idle board would not have used; None if either is not known."""
    return None if energy_j is None or idle_w is None else energy_j - idle_w * seconds


def bounded(energy: Energy) -> Energy:
    """Return the energy as a message may carry it: figures beyond the bounds, of a broken sensor, are not measured."""
    return replace(
        energy,
        source=None if energy.source is None else printable(energy.source, MAX_SOURCE),
        covers=None if energy.covers is None else printable(energy.covers, MAX_COVERS),
        energy_j=_at_most(energy.energy_j, MAX_J),
        uncertainty_j=_at_most(energy.uncertainty_j, MAX_J),
        idle_w=_at_most(energy.idle_w, MAX_W),
        phases={
            name: replace(
                phase, energy_j=_at_most(phase.energy_j, MAX_J), uncertainty_j=_at_most(phase.uncertainty_j, MAX_J)
            )
            for name, phase in energy.phases.items()
        },
        throttled=None if energy.throttled is None else energy.throttled[:MAX_FLAGS],
    )


def _at_most(value: float | None, limit: float) -> float | None:
    return None if value is None or value > limit else value
