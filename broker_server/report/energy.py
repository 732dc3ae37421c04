"""Sums of what plans have cost, which say what they leave out.

A plan is one device's part in a round. A sum is over the plans that were measured; how many there are of how many goes
with it, so a fleet of which a part has no meter is never taken for one that needs less.
"""

# coverage: every branch

from collections.abc import Callable, Iterable, Sequence

import msgspec

from edge_runtime.wire.energy import Energy, Phase


class PhaseSum(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of some plans: `measured` of the `plans` that had it are in `energy_j`, which is None for none.

    `estimated_j` is the part of it that comes from models.
    """

    seconds: float
    energy_j: float | None
    estimated_j: float | None
    measured: int
    plans: int


class EnergySum(msgspec.Struct, frozen=True, kw_only=True):
    """Some plans together. None is what no plan measured; `partial`: not every plan did.

    `estimated_j` is the part of `energy_j` that comes from models. `uncertainty_j` is a bound. `above_idle_j` is what
    is left without the idle boards' power; None unless every measured plan has a baseline. `temperature_max_c` is of
    the hottest board, `throttled` names what held any of them back.
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
    """The sum over plans; None is a plan of which nothing is known."""
    known = [energy for energy in plans if energy is not None]
    measured = [energy for energy in known if energy.energy_j is not None]
    energy_j, estimated_j = _joules([(energy.energy_j, energy.estimated) for energy in known])
    return EnergySum(
        energy_j=energy_j,
        estimated_j=estimated_j,
        estimated=any(energy.estimated for energy in measured),
        uncertainty_j=_sum(energy.uncertainty_j for energy in measured),
        above_idle_j=_all(measured, above_idle_j),
        measured=len(measured),
        plans=len(plans),
        partial=0 < len(measured) < len(plans),
        phases=_phases(known),
        temperature_max_c=max((e.temperature_max_c for e in known if e.temperature_max_c is not None), default=None),
        throttled=_union([energy.throttled for energy in known if energy.throttled is not None]),
    )


def above_idle_j(energy: Energy) -> float | None:
    """A plan's energy without the idle board's power over the same time; None without a baseline."""
    if energy.energy_j is None or energy.idle_w is None:
        return None
    return energy.energy_j - energy.idle_w * energy.seconds


def joules(value: float) -> str:
    """Joules for people, in three digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} J" if abs(value) >= 1 else f"{value:.3g} J"


def label(found: EnergySum | PhaseSum) -> str:
    """The sum for people: joules, with what they leave out and whether they are estimated; – for none."""
    words = notes(found)
    return f"{figure(found)} ({words})" if words else figure(found)


def figure(found: EnergySum | PhaseSum) -> str:
    """The joules of a label."""
    if found.energy_j is None:
        return "–"
    return f"{'≥ ' if found.measured < found.plans else ''}{joules(found.energy_j)}"


def notes(found: EnergySum | PhaseSum) -> str:
    """What a label says beside the joules; empty for a sum of measured plans, all of them."""
    said = []
    if found.estimated_j:
        whole = found.estimated_j == found.energy_j
        said.append("estimated" if whole else f"{joules(found.estimated_j)} of it estimated")
    if 0 < found.measured < found.plans:
        said.append(f"{found.measured} of {found.plans} measured")
    return ", ".join(said)


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
    """The sum of what was measured, and the part of it that is estimated; None for nothing measured."""
    found = [(energy_j, estimated) for energy_j, estimated in parts if energy_j is not None]
    if not found:
        return None, None
    return sum(energy_j for energy_j, _ in found), sum(energy_j for energy_j, estimated in found if estimated)


def _sum(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _all(plans: Iterable[Energy], part: Callable[[Energy], float | None]) -> float | None:
    found = [part(energy) for energy in plans]
    return None if None in found else _sum(found)


def _union(flags: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    return tuple(sorted({name for names in flags for name in names})) if flags else None
