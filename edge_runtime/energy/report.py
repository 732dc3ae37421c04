"""From a round's totals to its energy. None is a figure that was not measured."""

# coverage: every branch

from collections.abc import Mapping

from edge_runtime.energy.records import BoardConditions, PhaseTotals
from edge_runtime.wire.energy import Energy, Phase, PhaseEnergy

MEASURED_SHARE = 0.9
"""A phase, or a round, that was measured for a smaller share of its time has no energy."""


def mean_w(totals: PhaseTotals) -> float | None:
    """Return the mean power over the measured time; None if too little of the time was measured."""
    if totals.measured_s > 0 and totals.measured_s >= MEASURED_SHARE * totals.seconds:
        return totals.energy_j / totals.measured_s
    return None


def phase_energy(totals: PhaseTotals) -> PhaseEnergy:
    """Return a phase's energy; the little time that was not measured counts at the mean power."""
    power_w = mean_w(totals)
    missing_j = (power_w or 0.0) * max(0.0, totals.seconds - totals.measured_s)
    return PhaseEnergy(
        seconds=totals.seconds,
        energy_j=None if power_w is None else totals.energy_j + missing_j,
        uncertainty_j=None if power_w is None else totals.uncertainty_j + abs(missing_j),
    )


def round_energy(
    phases: Mapping[Phase, PhaseTotals],
    *,
    covers: str | None,
    baseline: tuple[str, float] | None,
    conditions: BoardConditions,
) -> Energy:
    """Return a round's energy out of its phases' totals: None if too little of the whole round was measured.

    `baseline` is (source, watts); it counts only for energy of the same source.
    """
    totals = list(phases.values())
    whole = PhaseTotals()
    for each in totals:
        whole.seconds += each.seconds
        whole.measured_s += each.measured_s
        whole.gap_s += each.gap_s
        whole.energy_j += each.energy_j
        whole.uncertainty_j += each.uncertainty_j
    found = phase_energy(whole)
    sources = tuple(dict.fromkeys(source for each in totals for source in each.sources))
    readings = sum(each.readings for each in totals)
    return Energy(
        source="+".join(sources) or None,
        covers=covers if sources else None,
        estimated=any(each.estimated for each in totals),
        energy_j=found.energy_j,
        uncertainty_j=found.uncertainty_j,
        idle_w=baseline[1] if baseline is not None and sources == (baseline[0],) else None,
        sample_rate_hz=readings / whole.measured_s if whole.measured_s > 0 else None,
        seconds=whole.seconds,
        measured_s=whole.measured_s,
        gap_s=whole.gap_s,
        phases={name: phase_energy(each) for name, each in phases.items() if each.seconds > 0},
        temperature_max_c=conditions.temperature_max_c,
        cpu_min_hz=conditions.cpu_min_hz,
        throttled=conditions.throttled,
    )
