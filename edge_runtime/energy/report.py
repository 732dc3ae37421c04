"""What is said about a round's energy. None is what was not measured."""

# coverage: every branch

from collections.abc import Iterable

import msgspec

from edge_runtime.energy.records import Tally, Weather
from edge_runtime.wire.energy import Phase

MEASURED_SHARE = 0.9
"""A phase, or round, of which less was measured has no energy; what little is missing counts at the mean power."""


class PhaseEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of a round. `uncertainty_j` is a bound."""

    seconds: float
    measured_s: float
    energy_j: float | None
    uncertainty_j: float | None
    mean_w: float | None
    min_w: float | None
    max_w: float | None


class RoundEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """A round of one group on this device: all phases, idle waiting in between included.

    `estimated`: from a model, not from a meter. `above_idle_j` is what is left of `energy_j` without the idle board's
    power over the same time. `throttled` names what held the board back during the round.
    """

    round: int
    group: str
    source: str | None
    covers: str | None
    estimated: bool
    sample_rate_hz: float | None
    energy_j: float | None
    uncertainty_j: float | None
    idle_w: float | None
    above_idle_j: float | None
    seconds: float
    measured_s: float
    gap_s: float
    phases: dict[Phase, PhaseEnergy]
    temperature_max_c: float | None
    cpu_min_hz: float | None
    throttled: tuple[str, ...] | None
    reasons: tuple[str, ...] = ()
    """Why nothing measures, where nothing does."""


def phase_energy(tally: Tally) -> PhaseEnergy:
    """A tally as it is reported."""
    energy_j = uncertainty_j = mean_w = None
    if tally.measured_s > 0 and tally.measured_s >= MEASURED_SHARE * tally.seconds:
        mean_w = tally.energy_j / tally.measured_s
        missing_j = mean_w * max(0.0, tally.seconds - tally.measured_s)
        energy_j = tally.energy_j + missing_j
        uncertainty_j = tally.uncertainty_j + abs(missing_j)
    return PhaseEnergy(
        seconds=tally.seconds,
        measured_s=tally.measured_s,
        energy_j=energy_j,
        uncertainty_j=uncertainty_j,
        mean_w=mean_w,
        min_w=tally.low_w,
        max_w=tally.high_w,
    )


def round_energy(
    round_: int,
    group: str,
    tallies: dict[Phase, Tally],
    *,
    covers: str | None,
    baseline: tuple[str, float] | None,
    weather: Weather,
    reasons: tuple[str, ...] = (),
) -> RoundEnergy:
    """A round out of its phases. It has an energy if enough of the whole of it was measured.

    `baseline` is (source, watts); it counts only for energy of the same source.
    """
    phases = {name: phase_energy(tally) for name, tally in tallies.items() if tally.seconds > 0}
    whole = phase_energy(_sum(tallies.values()))
    sources = tuple(dict.fromkeys(source for tally in tallies.values() for source in tally.sources))
    readings = sum(tally.readings for tally in tallies.values())
    idle_w = baseline[1] if baseline is not None and sources == (baseline[0],) else None
    return RoundEnergy(
        round=round_,
        group=group,
        source="+".join(sources) or None,
        covers=covers if sources else None,
        estimated=any(tally.estimated for tally in tallies.values()),
        sample_rate_hz=readings / whole.measured_s if whole.measured_s > 0 else None,
        energy_j=whole.energy_j,
        uncertainty_j=whole.uncertainty_j,
        idle_w=idle_w,
        above_idle_j=None if whole.energy_j is None or idle_w is None else whole.energy_j - idle_w * whole.seconds,
        seconds=whole.seconds,
        measured_s=whole.measured_s,
        gap_s=sum(tally.gap_s for tally in tallies.values()),
        phases=phases,
        temperature_max_c=weather.temperature_max_c,
        cpu_min_hz=weather.cpu_min_hz,
        throttled=weather.throttled,
        reasons=reasons,
    )


def _sum(tallies: Iterable[Tally]) -> Tally:
    """Lengths, energy and uncertainty of phases together."""
    whole = Tally()
    for tally in tallies:
        whole.seconds += tally.seconds
        whole.measured_s += tally.measured_s
        whole.energy_j += tally.energy_j
        whole.uncertainty_j += tally.uncertainty_j
    return whole
