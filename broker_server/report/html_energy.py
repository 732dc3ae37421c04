"""The page's section on energy: joules by group and phase, and each device's part of the newest rounds.

An estimate is labelled where it stands, a sum that leaves plans out says so, and what was not measured is a dash.
"""

import html
from collections.abc import Sequence
from typing import get_args

from broker_server.report.build import EnergyReport, Report, RoundReport
from broker_server.report.energy import EnergySum, PhaseSum, figure, joules, notes
from edge_runtime.wire.energy import Energy, Phase

MAX_PLANS = 200
"""Devices' parts in rounds that the page lists, the newest; report.json has all."""
_PHASES: tuple[Phase, ...] = get_args(Phase)
Cell = str | tuple[str, str]
"""What stands in a table: a text, or one with a note below it."""
_NOTE = (
    "Joules over all rounds, measuring rounds and plans that came to nothing included. “estimated” is from a model of "
    "the processor's use, not from a meter. “≥” is a sum that leaves out plans without a meter. ± is a bound on the "
    "error of what the meters cover."
)


def section(report: Report) -> str:
    """What stands in the section; empty where no device has said anything of its energy."""
    plans = [
        (row.round, row.group, device, energy)
        for row in report.rounds
        for device, energy in row.energy_by_device.items()
        if energy is not None
    ]
    if not plans and report.energy.total.energy_j is None:
        return ""
    shown = plans[-MAX_PLANS:]
    left_out = f" The newest {MAX_PLANS} of {len(plans)}; report.json has all." if len(shown) < len(plans) else ""
    return (
        f"<div class=scroll>{_groups(report.energy)}</div><p class=note>{html.escape(_NOTE)}</p>"
        f"<div class=scroll>{_devices(shown)}</div>"
        f"<p class=note>Each device's part of the rounds of training.{left_out}</p>"
    )


def card(report: Report) -> tuple[str, str] | None:
    """The figure that stands above everything, and its words; None where nothing was measured."""
    found = report.energy.total
    if found.energy_j is None:
        return None
    words = notes(found)
    return figure(found), f"energy: {words}" if words else "energy"


def cell(row: RoundReport) -> str:
    """A round's energy in the table of rounds."""
    return _html(_label(row.energy))


def _groups(energy: EnergyReport) -> str:
    """A column for each group, and one for all."""
    sums = [*energy.groups.values(), energy.total]
    phases = [phase for phase in _PHASES if phase in energy.total.phases]
    lines = [(phase, *(_label(found.phases.get(phase)) for found in sums)) for phase in phases]
    lines += [
        ("in all", *(_label(found) for found in sums)),
        ("±", *(_part(found, found.uncertainty_j) for found in sums)),
        ("above idle", *(_part(found, found.above_idle_j) for found in sums)),
        ("hottest", *(_celsius(found.temperature_max_c) for found in sums)),
        ("held back by", *(_flags(found.throttled) for found in sums)),
    ]
    return _table(("", *energy.groups, "all"), lines, words={0})


def _label(found: EnergySum | PhaseSum | None) -> Cell:
    return "–" if found is None else (figure(found), notes(found))


def _part(found: EnergySum, value: float | None) -> Cell:
    return _joules(value, is_estimated=found.estimated, is_partial=found.partial)


def _devices(plans: Sequence[tuple[int, str, str, Energy]]) -> str:
    head = (
        "round",
        "group",
        "device",
        "J",
        "±",
        "above idle",
        "idle",
        "by",
        "Hz",
        "seen",
        "hottest",
        "held back by",
    )
    lines = [
        (
            str(number),
            group,
            device,
            _joules(energy.energy_j, is_estimated=energy.estimated),
            _joules(energy.uncertainty_j, is_estimated=energy.estimated),
            _joules(energy.above_idle_j, is_estimated=energy.estimated),
            _watts(energy.idle_w, is_estimated=energy.estimated),
            energy.source or "no meter",
            _number(energy.sample_rate_hz, 1),
            "–" if energy.source is None or not energy.seconds else f"{100 * energy.measured_s / energy.seconds:.0f} %",
            _celsius(energy.temperature_max_c),
            _flags(energy.throttled),
        )
        for number, group, device, energy in plans
    ]
    return _table(head, lines, words={1, 2, 7, 11})


def _table(head: Sequence[Cell], lines: Sequence[Sequence[Cell]], words: set[int]) -> str:
    def row(cells: Sequence[Cell], tag: str) -> str:
        parts = (f"<{tag}{'' if i in words else ' class=n'}>{_html(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _joules(value: float | None, *, is_estimated: bool, is_partial: bool = False) -> Cell:
    if value is None:
        return "–"
    return f"{'≥ ' if is_partial else ''}{joules(value)}", "estimated" if is_estimated else ""


def _watts(value: float | None, *, is_estimated: bool) -> Cell:
    return "–" if value is None else (f"{value:.2f} W", "estimated" if is_estimated else "")


def _html(cell: Cell) -> str:
    text, note = (cell, "") if isinstance(cell, str) else cell
    return html.escape(text) + (f"<small>{html.escape(note)}</small>" if note else "")


def _celsius(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} °C"


def _flags(names: Sequence[str] | None) -> str:
    return "–" if names is None else ", ".join(names) or "nothing"
