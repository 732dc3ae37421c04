"""What the page shows, kept so that a viewer gets all of it once and from then on what has changed."""

# coverage: every branch

from collections import deque
from collections.abc import Sequence

import msgspec

from broker_server.operator import messages as shown
from broker_server.operator.view import KEPT_ROUNDS

KEPT_EVENTS = 200


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has changed, or, with `is_all`, all that there is. What is not named is as it was."""

    status: shown.FederationView
    is_all: bool = False
    devices: tuple[shown.DeviceView, ...] = ()
    gone: tuple[str, ...] = ()
    rounds: tuple[shown.RoundView, ...] = ()
    events: tuple[shown.Event, ...] = ()
    affinity: shown.AffinityView | None = None


class Snapshot:
    """The newest views."""

    def __init__(self) -> None:
        self._status: shown.FederationView | None = None
        self._devices: dict[str, shown.DeviceView] = {}
        self._rounds: deque[shown.RoundView] = deque(maxlen=KEPT_ROUNDS)
        self._events: deque[shown.Event] = deque(maxlen=KEPT_EVENTS)
        self._affinity: shown.AffinityView | None = None

    @property
    def last_round(self) -> int:
        """The number of the newest closed round; -1 before there is one."""
        return self._rounds[-1].number if self._rounds else -1

    @property
    def last_event(self) -> int:
        """The number of the newest event; 0 before there is one."""
        return self._events[-1].number if self._events else 0

    @property
    def all(self) -> Change | None:
        """All that there is; None before the first views."""
        if self._status is None:
            return None
        return Change(
            status=self._status,
            is_all=True,
            devices=tuple(self._devices.values()),
            rounds=tuple(self._rounds),
            events=tuple(self._events),
            affinity=self._affinity,
        )

    def update(
        self,
        status: shown.FederationView,
        devices: Sequence[shown.DeviceView],
        rounds: Sequence[shown.RoundView],
        events: Sequence[shown.Event],
        affinity: shown.AffinityView,
    ) -> Change:
        """Take newer views; `rounds` and `events` are those after the last ones. Return what has changed."""
        named = {each.name: each for each in devices}
        change = Change(
            status=status,
            devices=tuple(each for each in devices if self._devices.get(each.name) != each),
            gone=tuple(sorted(set(self._devices) - set(named))),
            rounds=tuple(rounds),
            events=tuple(events),
            affinity=None if affinity == self._affinity else affinity,
        )
        self._status, self._devices, self._affinity = status, named, affinity
        self._rounds.extend(rounds)
        self._events.extend(events)
        return change
