"""A recording of power: from readings to watts, and from watts to the energy of segments. No clock and no file.

Time is in seconds from the recording's start. Between two readings power is a straight line; a counter gives the mean
since the reading before. The time between readings more than BRIDGE_S apart was not measured.
"""

# coverage: every branch

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge_runtime.wire.energy import above_idle_j

BRIDGE_S = 10.0
IDLE = "idle"
"""The segment before the work: its mean power is the baseline."""


@dataclass(frozen=True, kw_only=True)
class PowerReading:
    """One reading in watts. `mark` is the name of the segment that it belongs to."""

    seconds: float
    watts: float
    mark: str


@dataclass(frozen=True, kw_only=True)
class RecordingSegment:
    """The part of a recording between two marks. `above_idle_j` is None without a baseline."""

    mark: str
    seconds: float
    measured_s: float
    energy_j: float
    mean_w: float | None
    min_w: float
    max_w: float
    above_idle_j: float | None


class PowerConverter:
    """Converts readings to watts. `ranges_j` is where each counter starts again; None for a meter of watts."""

    def __init__(self, ranges_j: tuple[float, ...] | None) -> None:
        self._ranges_j = ranges_j
        self._last: tuple[float, tuple[float, ...]] | None = None

    def __call__(self, seconds: float, values: tuple[float, ...]) -> float | None:
        """Return the watts at that time; None for a counter's first reading."""
        if self._ranges_j is None:
            return sum(values)
        last, self._last = self._last, (seconds, values)
        if last is None or seconds <= last[0]:
            return None
        pairs = zip(values, last[1], self._ranges_j, strict=True)
        joules = sum((now - before) % whole if now < before else now - before for now, before, whole in pairs)
        return joules / (seconds - last[0])


def segments(readings: Sequence[PowerReading]) -> list[RecordingSegment]:
    """Return a recording's segments in the order of their beginning.

    The interval between two readings belongs to the segment of the first.
    """
    marks = list(dict.fromkeys(each.mark for each in readings))
    parts = {mark: [pair for pair in pairwise(readings) if pair[0].mark == mark] for mark in marks}
    idle_w = _mean_w(parts.get(IDLE, []))
    found = []
    for mark in marks:
        pairs = parts[mark]
        watts = [each.watts for each in readings if each.mark == mark]
        measured_s = sum(_length_s(pair) for pair in pairs)
        energy_j = sum(_joules(pair) for pair in pairs)
        found.append(
            RecordingSegment(
                mark=mark,
                seconds=sum(after.seconds - before.seconds for before, after in pairs),
                measured_s=measured_s,
                energy_j=energy_j,
                mean_w=_mean_w(pairs),
                min_w=min(watts),
                max_w=max(watts),
                above_idle_j=above_idle_j(energy_j, idle_w, measured_s),
            )
        )
    return found


def mean_w(readings: Sequence[PowerReading]) -> float | None:
    """Return the mean power of a whole recording; None where nothing was measured."""
    return _mean_w(list(pairwise(readings)))


def _mean_w(pairs: Iterable[tuple[PowerReading, PowerReading]]) -> float | None:
    pairs = list(pairs)
    measured_s = sum(_length_s(pair) for pair in pairs)
    return sum(_joules(pair) for pair in pairs) / measured_s if measured_s > 0 else None


def _length_s(pair: tuple[PowerReading, PowerReading]) -> float:
    length_s = pair[1].seconds - pair[0].seconds
    return length_s if length_s <= BRIDGE_S else 0.0


def _joules(pair: tuple[PowerReading, PowerReading]) -> float:
    return _length_s(pair) * (pair[0].watts + pair[1].watts) / 2
