"""Refusals: who was refused and why, said at once, and after that how often, however often it happens.

Rules
- A line for each who and why: the first time at once, then a count after a minute, two, four …, up to an hour.
- What was not repeated for twice that time is forgotten, and said at once when it happens again.
- Names and reasons may be made up by strangers. Beyond an allowance of new ones, they are told together, as others.
"""

# coverage: every branch

from dataclasses import dataclass

from broker_server.server.allowance import Allowance
from devices.cli.text import printable

OTHERS = ("others", "they come under too many names, or for too many reasons, to be told apart")
MOST = 256
"""The refusals that are told apart at a time."""
FIRST_WAIT_S, LAST_WAIT_S = 60.0, 3600.0
MAX_WHO, MAX_WHY = 100, 500


@dataclass(frozen=True, kw_only=True)
class RefusalLine:
    """A line to say: `count` are the refusals since the line before it, in `in_s` seconds; None for the first."""

    who: str
    why: str
    count: int
    in_s: float | None

    @property
    def text(self) -> str:
        """The line."""
        if self.in_s is None:
            return f"refused {self.who}: {self.why}"
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"refused {self.who}: {self.why} ({times} more in {self.in_s / 60:.0f} min)"


@dataclass
class _Known:
    """A refusal that is told apart. `said_s` is None before its first line; `is_over`: who it is of has been let in."""

    unsaid: int = 0
    total: int = 0
    said_s: float | None = None
    wait_s: float = FIRST_WAIT_S
    is_over: bool = False


class Refusals:
    """The refusals of a server. `now_s` is any clock that goes forward."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Known] = {}
        self._new = Allowance(burst=20, per_s=1 / 30)

    def add(self, who: str, why: str, now_s: float, count: int = 1) -> None:
        """Count refusals."""
        key = (printable(who, MAX_WHO), printable(why, MAX_WHY))
        if key not in self._known and (len(self._known) >= MOST or not self._new.take("", now_s)):
            key = OTHERS
        known = self._known.setdefault(key, _Known())
        known.unsaid += count
        known.total = count if known.is_over else known.total + count
        known.is_over = False

    def end(self, who: str) -> None:
        """Note that somebody has been let in. What is refused again soon is counted on, not said anew."""
        for (name, _), known in self._known.items():
            known.is_over = known.is_over or name == who

    def of(self, who: str) -> str:
        """Return why one was refused, and how often; empty if it was not."""
        found = [(each.total, why) for (name, why), each in self._known.items() if name == who and not each.is_over]
        return "; ".join(f"refused: {why}" + (f" ({total} times)" if total > 1 else "") for total, why in found)

    def lines(self, now_s: float) -> list[RefusalLine]:
        """Return what is to be said now."""
        found = []
        for (who, why), known in list(self._known.items()):
            if known.said_s is None:
                known.said_s = now_s
                found.append(RefusalLine(who=who, why=why, count=known.unsaid, in_s=None))
                known.unsaid = 0
            elif known.unsaid and now_s - known.said_s >= known.wait_s:
                found.append(RefusalLine(who=who, why=why, count=known.unsaid, in_s=now_s - known.said_s))
                known.said_s, known.unsaid = now_s, 0
                known.wait_s = min(2 * known.wait_s, LAST_WAIT_S)
            elif now_s - known.said_s > 2 * known.wait_s:
                del self._known[who, why]
        return found
