"""The page's section on energy: joules by group and phase, and each device's part of the newest rounds.

An estimate is labelled where it stands, a sum that leaves plans out is marked as such, and a figure that was not
measured is a dash.
"""

# coverage: every branch

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from broker_server.report.build import EnergyReport, Report
from broker_server.report.energy import EnergySum, PhaseSum, figure, joules, notes
from edge_runtime.wire.energy import Energy, Phase

MAX_PLANS = 200
"""Devices' parts in rounds that the page lists, the newest; report.json has all."""
_PHASES: tuple[Phase, ...] = get_args(Phase)
_DEVICE_COLUMNS = (
    "round",
    "group",
    "device",
    "J",
    "±",
    "above idle",
    "idle",
    "by",
    "Hz",
    "measured",
    "hottest",
    "held back by",
)


class Cell(NamedTuple):
    """A cell of a table: a text, and a note that stands below it."""

    text: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class EnergyTable:
    """A table: titles of columns, lines of cells, and the columns that hold words, which stand on the left."""

    head: tuple[str, ...]
    lines: list[list[Cell]]
    words: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class EnergySection:
    """Joules by group, and the newest `shown` of all devices' `plans`."""

    groups: EnergyTable
    devices: EnergyTable
    shown: int
    plans: int


def section(report: Report) -> EnergySection | None:
    """Return the section; None where no device has reported its energy."""
    plans = [
        (row.round, row.group, device, energy)
        for row in report.rounds
        for device, energy in row.energy_by_device.items()
        if energy is not None
    ]
    if not plans and report.energy.total.energy_j is None:
        return None
    shown = plans[-MAX_PLANS:]
    return EnergySection(groups=_groups(report.energy), devices=_devices(shown), shown=len(shown), plans=len(plans))


def label_cell(found: EnergySum | PhaseSum | None) -> Cell:
    """Return a sum's joules, with a note of what they leave out and whether they are estimated."""
    return Cell("–") if found is None else Cell(figure(found), notes(found))


def _groups(energy: EnergyReport) -> EnergyTable:
    """Return a column for each group, and one for all."""
    sums = [*energy.groups.values(), energy.total]
    lines = [
        [Cell(phase), *(label_cell(found.phases.get(phase)) for found in sums)]
        for phase in _PHASES
        if phase in energy.total.phases
    ]
    lines += [
        [Cell("in all"), *(label_cell(found) for found in sums)],
        [Cell("±"), *(_part(found, found.uncertainty_j) for found in sums)],
        [Cell("above idle"), *(_part(found, found.above_idle_j) for found in sums)],
        [Cell("hottest"), *(_celsius(found.temperature_max_c) for found in sums)],
        [Cell("held back by"), *(_flags(found.throttled) for found in sums)],
    ]
    return EnergyTable(head=("", *energy.groups, "all"), lines=lines, words=frozenset({0}))


def _part(found: EnergySum, value: float | None) -> Cell:
    return _joules(value, is_estimated=found.estimated, is_partial=found.partial)


def _devices(plans: Sequence[tuple[int, str, str, Energy]]) -> EnergyTable:
    lines = [
        [
            Cell(str(number)),
            Cell(group),
            Cell(device),
            _joules(energy.energy_j, is_estimated=energy.estimated),
            _joules(energy.uncertainty_j, is_estimated=energy.estimated),
            _joules(energy.above_idle_j, is_estimated=energy.estimated),
            _watts(energy.idle_w, is_estimated=energy.estimated),
            Cell(energy.source or "no meter"),
            Cell("–" if energy.sample_rate_hz is None else f"{energy.sample_rate_hz:.1f}"),
            _measured_share(energy),
            _celsius(energy.temperature_max_c),
            _flags(energy.throttled),
        ]
        for number, group, device, energy in plans
    ]
    return EnergyTable(head=_DEVICE_COLUMNS, lines=lines, words=frozenset({1, 2, 7, 11}))


def _joules(value: float | None, *, is_estimated: bool, is_partial: bool = False) -> Cell:
    if value is None:
        return Cell("–")
    return Cell(f"{'≥ ' if is_partial else ''}{joules(value)}", "estimated" if is_estimated else "")


def _watts(value: float | None, *, is_estimated: bool) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.2f} W", "estimated" if is_estimated else "")


def _measured_share(energy: Energy) -> Cell:
    """Return the share of a plan's time that lies between readings."""
    if energy.source is None or not energy.seconds:
        return Cell("–")
    return Cell(f"{100 * energy.measured_s / energy.seconds:.0f} %")


def _celsius(value: float | None) -> Cell:
    return Cell("–" if value is None else f"{value:.0f} °C")


def _flags(names: Sequence[str] | None) -> Cell:
    return Cell("–" if names is None else ", ".join(names) or "nothing")
