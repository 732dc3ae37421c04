"""How long devices took to answer, and what follows from it for deadlines and plans, without I/O or clock.

Where `deadline_factor` is not 0, a round's deadline is the quantile of the last answers' times, times the factor: at
least LEAST_S, at most the setting `deadline_s`, which holds until there are ENOUGH. Training and measuring are apart.
After Bonawitz et al., Towards Federated Learning at Scale, MLSys 2019, section 4.3, which ends stragglers likewise.

A device's pace is the seconds from a plan to its update, line included, by the examples that it trained on, the newest
counting half. Where `work_factor` is not 0, it is asked for as much in a buffered round as it does in so many times
what the fastest device would take for the same: LEAST_SHARE of a plan's steps at least.
"""

# coverage: every branch

import math
from collections import deque

import msgspec

from broker_server.rounds.rules import Rules

KEPT = 256
ENOUGH = 5
LEAST_S = 10.0
NEWEST = 0.5
SHORT_S = 1e-3
"""No answer counts as faster than this."""
LEAST_SHARE = 1 / 32


class Learnt(msgspec.Struct, frozen=True, kw_only=True):
    """What later processes go on from: the last answers' seconds by the kind of work, and devices' paces."""

    times: dict[str, tuple[float, ...]] = {}
    paces: dict[str, float] = {}


class AnswerTimes:
    """Seconds from a plan to its counted answer, by the kind of work, newest last, and seconds an example by device."""

    def __init__(self, learnt: Learnt | None = None) -> None:
        """Go on from what an earlier process has kept."""
        known = learnt or Learnt()
        self._seconds = {work: deque(kept, KEPT) for work, kept in known.times.items()}
        self._paces = dict(known.paces)

    def add(self, work: str, seconds: float) -> None:
        """Note an answer."""
        self._seconds.setdefault(work, deque(maxlen=KEPT)).append(seconds)

    def add_update(self, device: str, seconds: float, examples: int) -> None:
        """Note how long a device took for an update of so many examples."""
        pace = max(seconds, SHORT_S) / max(1, examples)
        before = self._paces.get(device, pace)
        self._paces[device] = before + NEWEST * (pace - before)

    def kept(self) -> Learnt:
        """Return what a later process needs."""
        times = {work: tuple(seconds) for work, seconds in self._seconds.items()}
        return Learnt(times=times, paces=dict(self._paces))

    def share(self, device: str, factor: float) -> float:
        """Return the part of a plan's work that a device is asked for: all where nothing is known of it."""
        pace = self._paces.get(device, 0.0)
        if not factor or not pace:
            return 1.0
        return min(1.0, max(LEAST_SHARE, factor * min(self._paces.values()) / pace))

    def deadline_s(self, work: str, rules: Rules) -> float:
        """Return how long a round may take: learnt, or the setting."""
        seconds = sorted(self._seconds.get(work, ()))
        if not rules.deadline_factor or len(seconds) < ENOUGH:
            return rules.deadline_s
        quantile_s = seconds[math.ceil(rules.deadline_quantile * len(seconds)) - 1]
        return min(rules.deadline_s, max(LEAST_S, rules.deadline_factor * quantile_s))
