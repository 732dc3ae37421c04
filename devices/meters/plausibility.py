"""Doubts about a reading: pure functions that state what is likely wrong with a meter that cannot be right.

A wrong figure that looks measured is worse than none: ten times too many watts are a shunt of another resistance than
the driver was told, none at all or fewer than none are wires in the wrong place.
"""

# coverage: every branch

from dataclasses import dataclass

from devices.profile import Profile

_LEAST_SHARE = 0.25
"""Of the typical power at work: an idle board without a screen takes more."""
_MOST_SHARE = 1.1
"""Of what its supply gives."""
_MODE_SHARES = (0.1, 1.6)
"""Of a Jetson's least and greatest power mode, which limit its module on the average."""
_LEAST_FEED_V = 4.4
"""Boards are fed with 5 V or more."""
_FACTORS = (10.0, 100.0)
"""By how much shunts on the market differ: 0.1, 0.01 and 0.001 ohm."""


@dataclass(frozen=True, kw_only=True)
class PowerRange:
    """The watts that a board can take, by its profile."""

    board: str
    least_w: float
    most_w: float

    def has(self, power_w: float) -> bool:
        """Return whether the board can take this power."""
        return self.least_w <= power_w <= self.most_w


def power_range(profile: Profile | None) -> PowerRange | None:
    """Return what a board can take; None where its profile states no watts."""
    if profile is None:
        return None
    facts = profile.facts
    if facts.modes_w is not None:
        least_w, most_w = min(facts.modes_w.value) * _MODE_SHARES[0], max(facts.modes_w.value) * _MODE_SHARES[1]
    elif facts.active_w is not None and facts.supply_w is not None:
        least_w, most_w = facts.active_w.value * _LEAST_SHARE, facts.supply_w.value * _MOST_SHARE
    else:
        return None
    return PowerRange(board=profile.title, least_w=least_w, most_w=most_w)


def power_doubt(power_w: float, board: PowerRange | None, *, has_shunt: bool) -> str | None:
    """Return why a sensor's first reading cannot be the board's power; None if it can.

    `has_shunt`: it was told the resistance of a shunt that is not its own.
    """
    if power_w <= 0.0:
        return "it reads 0 W: nothing flows through it, so it is not in the board's feed"
    if board is None or board.has(power_w):
        return None
    said = f"it reads {power_w:.2f} W, and a {board.board} takes {board.least_w:.2g} to {board.most_w:.3g} W"
    for factor in _FACTORS if has_shunt else ():
        if board.has(power_w / factor):
            return f"{said}: its shunt has likely {factor:g} times the resistance that is set (R100 is 0.1 ohm)"
        if board.has(power_w * factor):
            return f"{said}: its shunt has likely 1/{factor:g} of the resistance that is set (R010 is 0.01 ohm)"
    return f"{said}: it measures something else, or more than the board"


def feed_doubt(*, volts: float | None, amperes: float | None, full_a: float | None) -> str | None:
    """Return why the feed that a chip measures cannot be the board's; None if it can, or the chip does not state it.

    `full_a` is the largest current that the chip measures.
    """
    if amperes is not None and full_a is not None and abs(amperes) >= 0.99 * full_a:
        return f"it is saturated at {full_a:.3g} A: more flows than it can measure, take a smaller shunt"
    if amperes is not None and amperes < 0.0:
        return "its current is below zero: the two wires at its shunt are swapped, or it is at a battery"
    if volts is not None and volts < _LEAST_FEED_V:
        return f"it is at {volts:.2f} V: that is a battery or a rail, not the board's feed"
    return None
