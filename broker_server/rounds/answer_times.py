"""How long devices took to answer, and the deadline that follows from it, without I/O or clock.

Where `deadline_factor` is not 0, a round's deadline is the quantile of the last answers' times, times the factor: at
least LEAST_S, at most the setting `deadline_s`, which holds until there are ENOUGH. Training and measuring are apart.
After Bonawitz et al., Towards Federated Learning at Scale, MLSys 2019, section 4.3, which ends stragglers likewise.
"""

# coverage: every branch

import math
from collections import deque
from collections.abc import Mapping, Sequence

from broker_server.rounds.rules import Rules

KEPT = 256
ENOUGH = 5
LEAST_S = 10.0


class AnswerTimes:
    """Seconds from a plan to its counted answer, by the kind of work, newest last."""

    def __init__(self, seconds: Mapping[str, Sequence[float]] | None = None) -> None:
        """Go on from what an earlier process has kept."""
        self._seconds = {work: deque(kept, KEPT) for work, kept in (seconds or {}).items()}

    def add(self, work: str, seconds: float) -> None:
        """Note an answer."""
        self._seconds.setdefault(work, deque(maxlen=KEPT)).append(seconds)

    def kept(self) -> dict[str, tuple[float, ...]]:
        """Return what a later process needs."""
        return {work: tuple(seconds) for work, seconds in self._seconds.items()}

    def deadline_s(self, work: str, rules: Rules) -> float:
        """Return how long a round may take: learnt, or the setting."""
        seconds = sorted(self._seconds.get(work, ()))
        if not rules.deadline_factor or len(seconds) < ENOUGH:
            return rules.deadline_s
        quantile_s = seconds[math.ceil(rules.deadline_quantile * len(seconds)) - 1]
        return min(rules.deadline_s, max(LEAST_S, rules.deadline_factor * quantile_s))
