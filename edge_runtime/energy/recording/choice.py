"""The meter to record with: a source that was named, or the board's best."""

from pathlib import Path

from devices.detection import detect
from devices.meters import Meter, discover
from devices.profile import Profile, load, load_all
from edge_runtime.energy.meter import MeterUnusable, Open

AUTO = "auto"


def choose(board: str, source: str | None, root: Path, open_: Open) -> Meter:
    """Open the meter of `source`, or of a board: its name, or `auto`, as the agent does.

    Raises MeterUnusable with the reasons of every meter that was tried, ProfileInvalid, and UsageError.
    """
    named = None if board == AUTO else board
    found = open_(source) if source is not None else discover(root, named)
    if found.meter is not None:
        return found.meter
    reasons = [*found.reasons]
    if found.others:
        reasons.append(f"not taken, as none of them measures the board: {', '.join(found.others)}")
    if source is None:
        reasons.append(_help(detect(load_all(), root).profile if named is None else load(named)))
    raise MeterUnusable("; ".join(reasons))


def _help(profile: Profile | None) -> str:
    wired = [] if profile is None else [name for name in profile.facts.meters.value if name.startswith("i2c:")]
    if not wired:
        return "docs/boards.md shows how a sensor is wired, and a plug is --source mqtt://…"
    return f"with a sensor wired as in docs/boards.md: --source {wired[0]}, with a plug: --source mqtt://…"
