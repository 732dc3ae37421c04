"""Views as text for people: no colours, no cut columns, so that they can be searched and mailed."""

# coverage: every branch

import datetime as dt
from collections.abc import Sequence

from broker_server.operator import messages as shown
from broker_server.operator.messages import Losses
from broker_server.report.energy import joules

_MIB = 1 << 20
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0


def status(found: shown.FederationView) -> str:
    """Return how the federation stands, in some lines."""
    lines = [("federation", f"{found.federation}, MAS Edge {found.version}"), ("now", found.says)]
    if found.open is not None and found.open.members:
        lines += _round_lines(found.open)
    lines.append(("devices", f"{found.online} of {found.known} online; a round needs {found.needed}"))
    lines += [("phase", _phase(each)) for each in found.phases]
    if found.phase_left_s is not None:
        ends = clock(found.at_s + found.phase_left_s)
        lines.append(("time left", f"about {duration(found.phase_left_s)} in this phase, until {ends}"))
    if found.split is not None:
        groups = "   ".join(" + ".join(group) for group in found.split.groups)
        lines.append(("split", f"{groups}   (score {found.split.score:.4f})"))
    if found.losses:
        lines.append(("loss", losses(found.losses)))
    lines += [("refused", f"{count} × {why}") for why, count in found.refused.items()]
    lines += [("dropped", f"{count} × {why}") for why, count in found.dropped.items()]
    return "\n".join(f"{name:10}  {text}" for name, text in lines)


def fleet(found: shown.FleetView) -> str:
    """Return a table with a line for each device, and how many there are of each kind."""
    if not found.total:
        return "no device yet: `python -m broker_server enrol NAME --out agent.toml` makes the file for one"
    head = ("device", "doing", "round", "work", "peak", "°C", "energy", "software", "why")
    counted = ", ".join(f"{count} {doing}" for doing, count in found.doing.items())
    return "\n".join([*_table([head, *map(_device, found.rows)]), f"{found.total} devices: {counted}"])


def device_lines(found: Sequence[shown.DeviceView]) -> str:
    """Return the lines of some devices, without a head."""
    return "\n".join(_table([_device(each) for each in found]))


def rounds(found: shown.Rounds, *, has_head: bool = True) -> str:
    """Return a table with a line for each round."""
    if not found.rows:
        return "no round has closed yet"
    head = ("round", "phase", "group", "by", "time", "energy", "loss")
    rows = [
        (
            str(each.number),
            f"{each.phase} {each.index + 1}/{each.rounds}",
            each.group,
            f"{each.results}/{each.members}",
            duration(each.wall_s),
            ("≥ " if each.is_partial else "") + _energy(each.energy_j, is_estimated=each.is_estimated),
            _loss(each),
        )
        for each in found.rows
    ]
    return "\n".join(_table([head, *rows] if has_head else rows))


def events(found: shown.Events) -> str:
    """Return a line for each note."""
    return "\n".join(f"{clock(each.at_s)}  {each.text}" for each in found.rows)


def duration(seconds: float) -> str:
    """Return a time in two of its units at the most."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S:.0f} min {seconds % _MINUTE_S:.0f} s"
    if seconds < _DAY_S:
        return f"{seconds // _HOUR_S:.0f} h {seconds % _HOUR_S // _MINUTE_S:.0f} min"
    return f"{seconds // _DAY_S:.0f} d {seconds % _DAY_S // _HOUR_S:.0f} h"


def clock(at_s: float) -> str:
    """Return a moment by this machine's clock and zone."""
    return dt.datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def losses(found: Losses) -> str:
    """Return losses by task."""
    return "  ".join(f"{task} {loss:.4f}" for task, loss in found.items())


def _round_lines(current: shown.RoundNow) -> list[tuple[str, str]]:
    age = "" if current.age_s is None else f"since {duration(current.age_s)}; "
    until = "" if current.deadline_in_s is None else f", closes in {duration(current.deadline_in_s)} at the latest"
    lost = ((current.refused, "refused"), (current.rejected, "rejected"))
    without = "".join(f"; {number} {word}" for number, word in lost if number)
    found = [("round", f"{age}needs {_results(current.quorum)}{until}{without}")]
    for each in current.waiting_for:
        progress = "" if each.stage is None else f", {each.stage} {each.done}/{each.total}"
        found.append(("waits for", f"{each.device}: {each.doing}{progress}"))
    if more := current.unanswered - len(current.waiting_for):
        found.append(("waits for", f"{more} more"))
    return found


def _results(number: int) -> str:
    return "1 result" if number == 1 else f"{number} results"


def _phase(found: shown.PhaseView) -> str:
    groups = "   ".join("+".join(group) for group in found.groups)
    return f"{found.name} {found.done}/{found.rounds} {'rounds' if found.work == 'train' else 'measured'}  {groups}"


def _why(found: shown.DeviceView) -> str:
    held = f"held back: {', '.join(found.throttled)}" if found.throttled else ""
    return "; ".join(filter(None, (found.why, held)))


def _memory(found: shown.DeviceView) -> str:
    if found.peak_bytes is None:
        return "–"
    of = "" if found.budget_bytes is None else f"/{found.budget_bytes / _MIB:.0f}"
    return f"{found.peak_bytes / _MIB:.0f}{of} MiB"


def _energy(energy_j: float | None, *, is_estimated: bool) -> str:
    return "–" if energy_j is None else joules(energy_j) + (" est." if is_estimated else "")


def _loss(found: shown.RoundView) -> str:
    if found.test_loss is not None:
        return f"test  {losses(found.test_loss)}"
    return losses(found.train_loss) or "–"


def _device(found: shown.DeviceView) -> tuple[str, ...]:
    return (
        found.name,
        found.doing if found.stage is None else f"{found.stage} {found.done}/{found.total}",
        "–" if found.round is None else str(found.round),
        "–" if found.work_s is None else duration(found.work_s),
        _memory(found),
        "–" if found.temperature_c is None else f"{found.temperature_c:.0f}",
        _energy(found.energy_j, is_estimated=found.is_estimated),
        found.software or "–",
        _why(found),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
