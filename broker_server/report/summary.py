"""What came out of a federation, in three sentences: what happened, what it is worth, what it took."""

# coverage: every branch

from broker_server.report.build import Report
from broker_server.report.energy import figure, notes


def sentences(report: Report) -> tuple[str, ...]:
    """Return what can be said of a report, the first sentence always."""
    return tuple(each for each in (happened(report), worth(report), took(report)) if each)


def happened(report: Report) -> str:
    """Return who trained what, for how long."""
    devices = {device for row in report.rounds for device in row.clients}
    if not devices:
        return f"Nothing has been trained yet: {_counted(len(report.tasks), 'task')} wait for devices."
    phases: dict[str, dict[str, int]] = {}
    for row in report.rounds:
        rounds = phases.setdefault(row.phase, {})
        rounds[row.group] = rounds.get(row.group, 0) + 1
    parts = []
    for groups in phases.values():
        several = sorted(set(groups.values()))
        names = "; ".join(group.replace("+", " + ") for group in groups)
        each = " each" if len(groups) > 1 else ""
        numbers = "–".join(str(number) for number in dict.fromkeys((several[0], several[-1])))
        one = "with linear models" if report.rounds[0].linear else "as one model"
        how = one if len(groups) == 1 else f"in {len(groups)} groups ({names})"
        parts.append(f"{how} for {numbers} round{'' if several == [1] else 's'}{each}")
    who = _counted(len(devices), "device")
    return f"{who[0].upper()}{who[1:]} trained {_counted(len(report.tasks), 'task')} {', then '.join(parts)}."


def worth(report: Report) -> str:
    """Return what became of the test losses; empty before there is an end to compare with a beginning."""
    before, merged, end = (report.test_loss.get(stage) or {} for stage in ("before", "merged", "end"))
    last = end or merged
    if not before.get("total", 0) > 0 or "total" not in last:
        return ""
    text = (
        f"The total test loss went from {before['total']:.4f} to {last['total']:.4f} ({_change(before, last, 'total')})"
    )
    if end and merged.get("total", 0) > 0:
        text += f"; the model of all tasks had reached {merged['total']:.4f}"
    shared = [task for task in report.tasks if before.get(task, 0) > 0 and task in last]
    if len(shared) > 1:
        ordered = sorted(shared, key=lambda task: last[task] / before[task])
        best, least = ordered[0], ordered[-1]
        text += f"; {best} gained most ({_change(before, last, best)}), {least} least ({_change(before, last, least)})"
    return f"{text}."


def took(report: Report) -> str:
    """Return time, bytes, memory and energy; empty before anything was trained."""
    if not report.rounds:
        return ""
    parts = [] if report.wall_s is None else [duration(report.wall_s)]
    if moved := sum((row.bytes_up or 0) + (row.bytes_down or 0) for row in report.rounds):
        parts.append(f"{moved / 2**20:.1f} MiB over the network")
    if peaks := [row.peak_rss_bytes for row in report.rounds if row.peak_rss_bytes is not None]:
        parts.append(f"at most {max(peaks) / 2**20:.0f} MiB of memory on a device")
    energy = report.energy.total
    if energy.energy_j is not None:
        note = notes(energy)
        parts.append(f"{figure(energy)}{f' ({note})' if note else ''}")
    unmeasured = "" if energy.energy_j is not None else "no device measured its energy"
    if not parts:
        return f"{unmeasured[:1].upper()}{unmeasured[1:]}."
    listed = f"{', '.join(parts[:-1])}{' and ' if len(parts) > 1 else ''}{parts[-1]}"
    return f"It took {listed}{f'; {unmeasured}' if unmeasured else ''}."


def duration(seconds: float) -> str:
    """Return a time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _change(before: dict[str, float], after: dict[str, float], name: str) -> str:
    return f"{100 * (after[name] / before[name] - 1):+.1f} %".replace("-", "−")


_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _counted(number: int, noun: str) -> str:
    word = _WORDS[number] if number < len(_WORDS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"
