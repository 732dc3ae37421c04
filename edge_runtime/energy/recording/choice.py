"""Which meter a board has: what its profile names, the best first, then whatever else is there.

A sensor on I2C is tried only where the board was named by hand: on a bus nobody can see what a chip's shunt is.
"""

from collections.abc import Callable
from pathlib import Path

from devices.detection import detect
from devices.meters import Found, Meter, discover
from devices.profile import Profile, load, load_all

Open = Callable[[str], Found]


class NoMeter(Exception):
    """Nothing measures here; the sentence says what was tried and what helps."""


def choose(board: str, source: str | None, root: Path, open_: Open) -> Meter:
    """The meter of `source`, or of a board: its name, or `auto`. Raises NoMeter, ProfileInvalid and ValueError."""
    if source is not None:
        found = open_(source)
        if found.meter is None:
            raise NoMeter("; ".join(found.reasons))
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
    raise NoMeter("; ".join(dict.fromkeys(reasons)) + _help(profile))


def _candidates(profile: Profile | None, *, is_named: bool) -> list[str]:
    if profile is None:
        return []
    return [name for name in profile.facts.meters.value if is_named or not name.startswith("i2c:")]


def _help(profile: Profile | None) -> str:
    wired = [] if profile is None else [name for name in profile.facts.meters.value if name.startswith("i2c:")]
    if not wired:
        return "; docs/boards.md says how a sensor is wired, and a plug is --source mqtt://…"
    return f"; with a sensor wired as in docs/boards.md: --source {wired[0]}, with a plug: --source mqtt://…"
