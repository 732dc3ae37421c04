"""The meter of a board: the ones that its profile names, the best first, then any other that is there.

A sensor on I2C is tried only where the board was named by hand: a bus does not show the resistance of a chip's shunt.
"""

from pathlib import Path

from devices.detection import detect
from devices.meters import Meter, discover
from devices.profile import Profile, load, load_all
from edge_runtime.energy.meter import MeterUnusable, Open


def choose(board: str, source: str | None, root: Path, open_: Open) -> Meter:
    """Open the meter of `source`, or of a board: its name, or `auto`.

    Raises MeterUnusable with the reasons of every meter that was tried, ProfileInvalid, and UsageError.
    """
    if source is not None:
        found = open_(source)
        if found.meter is None:
            raise MeterUnusable("; ".join(found.reasons))
        return found.meter
    profile = detect(load_all(), root).profile if board == "auto" else load(board)
    reasons: list[str] = []
    for name in _candidates(profile, is_named=board != "auto"):
        found = open_(name)
        if found.meter is not None:
            return found.meter
        reasons += found.reasons
    found = discover(root)
    if found.meter is not None:
        return found.meter
    reasons += found.reasons
    raise MeterUnusable("; ".join(dict.fromkeys(reasons)) + _help(profile))


def _candidates(profile: Profile | None, *, is_named: bool) -> list[str]:
    if profile is None:
        return []
    return [name for name in profile.facts.meters.value if is_named or not name.startswith("i2c:")]


def _help(profile: Profile | None) -> str:
    wired = [] if profile is None else [name for name in profile.facts.meters.value if name.startswith("i2c:")]
    if not wired:
        return "; docs/boards.md shows how a sensor is wired, and a plug is --source mqtt://…"
    return f"; with a sensor wired as in docs/boards.md: --source {wired[0]}, with a plug: --source mqtt://…"
