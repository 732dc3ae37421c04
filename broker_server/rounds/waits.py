"""What a round waits for, in one line, and when to say it, without I/O or clock.

A wait is worth a line after SAY_AFTER_S, and again after twice as long each time, at most every MAX_SAY_S: one for too
few devices, for a member that is away, and for the last ones when half have answered; not one for members at work.
"""

# coverage: every branch

from collections.abc import Sequence

from broker_server.rounds.presence import DeviceState, Presence
from broker_server.rounds.round_state import OpenRound

SAY_AFTER_S = 5.0
MAX_SAY_S = 600.0
MAX_NAMES = 5


class Waits:
    """Says of each wait, which is told by its key, how long it has lasted when it is time to say so."""

    def __init__(self) -> None:
        self._key: object = None
        self._since_s = self._said_after_s = 0.0

    def said(
        self, current: OpenRound | None, presence: Presence, *, needed: int, grace_s: float, now_s: float
    ) -> str | None:
        """Return the line on what a round waits for, if it is to be said now."""
        names, online = [], len(presence.ready)
        key: object = None
        if current is not None and not current.members:
            key = online
        elif current is not None:
            # Without a quorum the grace period ends nothing: those that are away are waited for on.
            names = awaited(current, presence, grace_s, now_s) if current.has_quorum else list(current.unanswered)
            key = names = _worth_a_line(current, names, presence)
        lasted_s = self._lasted_s(key, now_s)
        if current is None or lasted_s is None:
            return None
        what = f"devices that can take part: {online} online, it needs {needed}"
        if current.members:
            what = _sentence(current, names, presence, grace_s, now_s)
        return f"round {current.round.number} has waited {lasted_s:.0f} s for {what}"

    def _lasted_s(self, key: object, now_s: float) -> float | None:
        """Return the seconds that a wait has lasted, if it is to be said now; None if not, or there is none."""
        if key != self._key:
            self._key, self._since_s, self._said_after_s = key, now_s, SAY_AFTER_S
        lasted_s = now_s - self._since_s
        if key is None or key == [] or lasted_s < self._said_after_s:
            return None
        self._said_after_s += min(MAX_SAY_S, self._said_after_s)
        return lasted_s


def awaited(current: OpenRound, presence: Presence, grace_s: float, now_s: float) -> list[str]:
    """Return the members that a round waits for: not those that have been away for `grace_s` or longer."""
    return [name for name in current.unanswered if _away_s(name, current, presence, now_s) < grace_s]


def why_without(current: OpenRound, now_s: float) -> str:
    """Say why a round closes without some of its members."""
    late = current.unanswered
    if now_s >= current.deadline_s:
        return f"at its deadline without {len(late)} of its members"
    if 0 < current.enough <= len(current.results):
        return f"with the {len(current.results)} results that are enough"
    return f"without {', '.join(late)}: away for too long"


def _worth_a_line(current: OpenRound, names: list[str], presence: Presence) -> list[str]:
    """Return the awaited members whose wait is worth a line."""
    away = [name for name in names if not presence.is_online(name)]
    return away or (names if 2 * len(current.results) >= len(current.members) else [])


def _sentence(current: OpenRound, names: Sequence[str], presence: Presence, grace_s: float, now_s: float) -> str:
    """Name the members that a round waits for, and what each is doing."""
    said = []
    for name in names[:MAX_NAMES]:
        if presence.is_online(name):
            what = _work(presence.devices[name])
        elif current.has_quorum:
            left_s = grace_s - _away_s(name, current, presence, now_s)
            what = f"away, it goes on without it in {left_s:.0f} s"
        else:
            what = "away"
        said.append(f"{name} ({what})")
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(said)}{more}"


def _away_s(name: str, current: OpenRound, presence: Presence, now_s: float) -> float:
    """Return how long a member has been away since it was asked, or this process began; negative if it is here."""
    if presence.is_online(name):
        return -1.0
    known = presence.devices.get(name)
    return now_s - max(current.since_s, 0.0 if known is None else known.changed_s)


def _work(device: DeviceState) -> str:
    progress = device.progress
    return "at work" if progress is None else f"{progress.stage}, {progress.done} of {progress.total}"
