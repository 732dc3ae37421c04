"""From readings to joules: pure functions of two readings at a time.

Between two readings power is a straight line (the trapezoid rule); a counter gives the energy itself, and its
wrap-around is undone. Readings need not be even in time: each carries its own time stamp.

The uncertainty is a bound, not a standard deviation: errors of resolution, of gain and from gaps are added up as if all
pointed the same way. What happens faster than the sampling, and what a meter does not cover, is not in it.
"""

# coverage: every branch

from dataclasses import dataclass

from devices.meters.meter import MeterFacts
from edge_runtime.energy.records import Reading

GAP_PERIODS = 5.0
"""Two readings that are further apart than this number of periods have a gap between them."""
BRIDGE_S = 10.0
"""The longest gap that is bridged, or GAP_PERIODS periods if that is longer. A longer one was not measured."""
ZONE_MAX_W = 2000.0
"""A counter that would mean more power was set back, or wrapped more than once."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Power between two readings: a straight line from `start_w` to `end_w`, known within `uncertainty_w`."""

    start_s: float
    end_s: float
    start_w: float
    end_w: float
    uncertainty_w: float
    is_gap: bool

    def power_w(self, t_s: float) -> float:
        """Return the power at a time within the span."""
        share = (t_s - self.start_s) / (self.end_s - self.start_s)
        return self.start_w + share * (self.end_w - self.start_w)

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Return the energy of a part of the span."""
        return (self.power_w(start_s) + self.power_w(end_s)) / 2 * (end_s - start_s)


def between(facts: MeterFacts, before: Reading, after: Reading, seen_w: tuple[float, float] | None) -> Span | None:
    """Return the span between two readings of one meter; None if it was not measured.

    `seen_w` is the least and the most power seen so far, which bounds what may have happened in a gap.
    """
    length_s = after.t_s - before.t_s
    period_s = 1 / facts.rate_hz
    if not 0 < length_s <= max(BRIDGE_S, GAP_PERIODS * period_s):
        return None
    if facts.counter_ranges_j is not None:
        counted = _counted_w(facts.counter_ranges_j, before, after, length_s)
        if counted is None:
            return None
        # A counter goes on counting when nothing reads it: time without readings is no gap for it.
        uncertainty_w = facts.gain_error * counted + facts.resolution * len(after.values) / length_s
        return Span(
            start_s=before.t_s,
            end_s=after.t_s,
            start_w=counted,
            end_w=counted,
            uncertainty_w=uncertainty_w,
            is_gap=False,
        )
    (start_w,), (end_w,) = before.values, after.values
    mean_w = (start_w + end_w) / 2
    uncertainty_w = facts.resolution / 2 + facts.gain_error * abs(mean_w)
    is_gap = length_s > GAP_PERIODS * period_s
    if is_gap:
        low_w, high_w = seen_w or (start_w, end_w)
        uncertainty_w += max(max(high_w, start_w, end_w) - mean_w, mean_w - min(low_w, start_w, end_w))
    return Span(
        start_s=before.t_s,
        end_s=after.t_s,
        start_w=start_w,
        end_w=end_w,
        uncertainty_w=uncertainty_w,
        is_gap=is_gap,
    )


def _counted_w(ranges_j: tuple[float, ...], before: Reading, after: Reading, length_s: float) -> float | None:
    """Return the mean power over all counters; None if one was set back or may have wrapped more than once."""
    total_w = 0.0
    for range_j, start_j, end_j in zip(ranges_j, before.values, after.values, strict=True):
        step_j = end_j - start_j if end_j >= start_j else end_j - start_j + range_j
        if not 0 <= step_j <= ZONE_MAX_W * length_s:
            return None
        total_w += step_j / length_s
    return total_w


def is_usable(facts: MeterFacts, values: tuple[float, ...]) -> bool:
    """Return whether a reading has as many values as the meter has counters, all of them finite."""
    expected = 1 if facts.counter_ranges_j is None else len(facts.counter_ranges_j)
    return len(values) == expected and all(abs(value) < 1e15 for value in values)
