"""Sums of plans' energy, which state what they leave out.

A plan is one device's part in a round. A sum is over the plans that were measured, and states how many of how many
plans these are: a fleet with meters on some of its boards is not mistaken for one that needs less energy.
"""

# coverage: every branch

from collections.abc import Iterable, Sequence

import msgspec

from edge_runtime.wire.energy import Energy, Phase


class PhaseSum(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of some plans: `measured` of the `plans` that had it are in `energy_j`, which is None without any.

    `estimated_j` is the part of `energy_j` that comes from models.
    """

    seconds: float
    energy_j: float | None
    estimated_j: float | None
    measured: int
    plans: int


class EnergySum(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of some plans together. None is a figure that no plan measured; `partial`: only some of them did.

    `estimated_j` is the part of `energy_j` that comes from models. `uncertainty_j` is a bound. `above_idle_j` is
    without the idle boards' power; None unless every measured plan has a baseline. `temperature_max_c` is of the
    hottest board, `throttled` names what held any of the boards back.
    """

    energy_j: float | None
    estimated_j: float | None
    estimated: bool
    uncertainty_j: float | None
    above_idle_j: float | None
    measured: int
    plans: int
    partial: bool
    phases: dict[Phase, PhaseSum]
    temperature_max_c: float | None
    throttled: tuple[str, ...] | None


def total(plans: Sequence[Energy | None]) -> EnergySum:
    """Return the sum over plans; None is a plan that nothing is known of."""
    known = [energy for energy in plans if energy is not None]
    measured = [energy for energy in known if energy.energy_j is not None]
    energy_j, estimated_j = _joules([(energy.energy_j, energy.estimated) for energy in known])
    return EnergySum(
        energy_j=energy_j,
        estimated_j=estimated_j,
        estimated=any(energy.estimated for energy in measured),
        uncertainty_j=_sum(energy.uncertainty_j for energy in measured),
        above_idle_j=None if any(e.above_idle_j is None for e in measured) else _sum(e.above_idle_j for e in measured),
        measured=len(measured),
        plans=len(plans),
        partial=0 < len(measured) < len(plans),
        phases=_phases(known),
        temperature_max_c=_max(energy.temperature_max_c for energy in known),
        throttled=_union(energy.throttled for energy in known),
    )


def exchanged(whole: EnergySum, before: Sequence[Energy | None], plan: Energy) -> EnergySum:
    """Return a sum with a plan's figures in place of those that it had of the plan: `before` is one, or empty."""
    old, new = total(before), total([plan])
    measured = whole.measured - old.measured + new.measured
    plans = whole.plans - old.plans + new.plans
    no_baseline = (whole.measured and whole.above_idle_j is None) or new.above_idle_j is None
    return EnergySum(
        energy_j=_changed(whole.energy_j, old.energy_j, new.energy_j),
        estimated_j=_changed(whole.estimated_j, old.estimated_j, new.estimated_j),
        estimated=whole.estimated or new.estimated,
        uncertainty_j=_changed(whole.uncertainty_j, old.uncertainty_j, new.uncertainty_j),
        above_idle_j=None if no_baseline else _changed(whole.above_idle_j, old.above_idle_j, new.above_idle_j),
        measured=measured,
        plans=plans,
        partial=0 < measured < plans,
        phases=whole.phases
        | {
            name: _exchanged_phase(*(found.phases.get(name, _NO_PHASE) for found in (whole, old, new)))
            for name in sorted({*old.phases, *new.phases})
        },
        temperature_max_c=_max([whole.temperature_max_c, new.temperature_max_c]),
        throttled=_union([whole.throttled, new.throttled]),
    )


def joules(value: float) -> str:
    """Return joules for people, in three digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} J" if abs(value) >= 1 else f"{value:.3g} J"


def label(found: EnergySum | PhaseSum) -> str:
    """Return a sum for people: joules, what they leave out and whether they are estimated; – without any."""
    words = notes(found)
    return f"{figure(found)} ({words})" if words else figure(found)


def figure(found: EnergySum | PhaseSum) -> str:
    """Return the joules of a label."""
    if found.energy_j is None:
        return "–"
    return f"{'≥ ' if found.measured < found.plans else ''}{joules(found.energy_j)}"


def notes(found: EnergySum | PhaseSum) -> str:
    """Return what a label states beside the joules; empty for a sum over plans that were all measured."""
    words = []
    if found.estimated_j:
        whole = found.estimated_j == found.energy_j
        words.append("estimated" if whole else f"{joules(found.estimated_j)} of it estimated")
    if 0 < found.measured < found.plans:
        words.append(f"{found.measured} of {found.plans} measured")
    return ", ".join(words)


def _phases(known: Iterable[Energy]) -> dict[Phase, PhaseSum]:
    found: dict[Phase, list[Energy]] = {}
    for energy in known:
        for name in energy.phases:
            found.setdefault(name, []).append(energy)
    return {name: _phase(name, plans) for name, plans in sorted(found.items())}


def _phase(name: Phase, plans: Sequence[Energy]) -> PhaseSum:
    parts = [(energy.phases[name], energy.estimated) for energy in plans]
    energy_j, estimated_j = _joules([(part.energy_j, estimated) for part, estimated in parts])
    return PhaseSum(
        seconds=sum(part.seconds for part, _ in parts),
        energy_j=energy_j,
        estimated_j=estimated_j,
        measured=sum(part.energy_j is not None for part, _ in parts),
        plans=len(parts),
    )


def _joules(parts: Iterable[tuple[float | None, bool]]) -> tuple[float | None, float | None]:
    """Return the sum of the measured energies, and its estimated part; None where nothing was measured."""
    found = [(energy_j, estimated) for energy_j, estimated in parts if energy_j is not None]
    if not found:
        return None, None
    return sum(energy_j for energy_j, _ in found), sum(energy_j for energy_j, estimated in found if estimated)


def _sum(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _max(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _union(flags: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    known = [names for names in flags if names is not None]
    return tuple(sorted({name for names in known for name in names})) if known else None


_NO_PHASE = PhaseSum(seconds=0.0, energy_j=None, estimated_j=None, measured=0, plans=0)


def _exchanged_phase(whole: PhaseSum, old: PhaseSum, new: PhaseSum) -> PhaseSum:
    return PhaseSum(
        seconds=whole.seconds - old.seconds + new.seconds,
        energy_j=_changed(whole.energy_j, old.energy_j, new.energy_j),
        estimated_j=_changed(whole.estimated_j, old.estimated_j, new.estimated_j),
        measured=whole.measured - old.measured + new.measured,
        plans=whole.plans - old.plans + new.plans,
    )


def _changed(whole: float | None, old: float | None, new: float | None) -> float | None:
    """Return a sum without the old part and with the new one; None is a part that was not measured."""
    if new is None and (whole is None or old is None):
        return whole
    return (whole or 0.0) - (old or 0.0) + (new or 0.0)
