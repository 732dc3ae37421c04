"""The ledger: the totals of all records so far. No clock, no files; a journal is read back by applying its records.

Rules
- Every record with a time moves the ledger's clock on; the time since the one before belongs to the last mark's phase.
- Energy comes with readings: the energy between two readings is divided among the phases in between, by time.
- A Start breaks the chain: between the end of one process and the start of the next nothing was measured and no time
  counts.
- `snapshot` gives records that stand for all before them; applied to an empty ledger they give the same ledger.
"""

# coverage: every branch

from devices.meters.meter import MeterFacts
from edge_runtime.energy.integration import Span, between, is_usable
from edge_runtime.energy.records import (
    Baseline,
    BoardConditions,
    DropRound,
    HealthReading,
    Mark,
    PhaseTotals,
    Reading,
    Record,
    RoundConditions,
    Start,
    Total,
)
from edge_runtime.energy.report import round_energy
from edge_runtime.wire.energy import Energy, Phase

Key = tuple[int, str, Phase]


class Ledger:
    """Totals by (round, group, phase), and the board's conditions in each round."""

    def __init__(self) -> None:
        self.facts: MeterFacts | None = None
        self.baseline: Baseline | None = None
        self.mark: Mark | None = None
        self._totals: dict[Key, PhaseTotals] = {}
        self._conditions: dict[tuple[int, str], BoardConditions] = {}
        self._clock_s: float | None = None
        self._last: Reading | None = None
        self._pending: list[tuple[float, float, Key]] = []
        """Parts of the time since the last reading: start, end, and the phase that each belongs to."""

    def apply(self, record: Record) -> None:
        """Apply a record. One that makes no sense where it stands, in a damaged file, changes nothing."""
        if isinstance(record, Reading):
            self._read(record)
        elif isinstance(record, Mark):
            self._advance(record.t_s)
            self.mark = record
        elif isinstance(record, HealthReading):
            self._advance(record.t_s)
            self._read_health(record)
        elif isinstance(record, Start):
            self._clock_s, self._last, self.mark, self.facts = record.t_s, None, None, record.facts
            self._pending.clear()
        elif isinstance(record, Total):
            self._totals[record.round, record.group, record.phase] = record.totals
        elif isinstance(record, RoundConditions):
            self._conditions[record.round, record.group] = record.conditions
        elif isinstance(record, Baseline):
            self.baseline = record
        else:
            self._drop(record)

    def totals(self, round_: int, group: str) -> dict[Phase, PhaseTotals]:
        """Return the totals of a round's phases so far; empty for a round that has none."""
        return {key[2]: totals for key, totals in self._totals.items() if key[:2] == (round_, group)}

    def report(self, round_: int, group: str) -> Energy:
        """Return a round's energy so far."""
        return round_energy(
            self.totals(round_, group),
            covers=None if self.facts is None else self.facts.covers,
            baseline=None if self.baseline is None else (self.baseline.source, self.baseline.idle_w),
            conditions=self._conditions.get((round_, group), BoardConditions()),
        )

    def rounds(self) -> set[tuple[int, str]]:
        """Return each (round, group) that has time, energy or conditions."""
        return {key[:2] for key in self._totals} | set(self._conditions)

    def snapshot(self) -> list[Record]:
        """Return records that stand for all so far. Time that has passed since the last reading stays not measured."""
        records: list[Record] = []
        if self._clock_s is not None:
            records.append(Start(self._clock_s, self.facts))
        records += [Total(*key, totals) for key, totals in self._totals.items()]
        records += [RoundConditions(*key, conditions) for key, conditions in self._conditions.items()]
        if self.baseline is not None:
            records.append(self.baseline)
        if self._last is not None and not self._pending:
            records.append(self._last)
        if self.mark is not None and self._clock_s is not None:
            records.append(Mark(self._clock_s, self.mark.round, self.mark.group, self.mark.phase))
        return records

    def _advance(self, t_s: float) -> None:
        """Move the clock; it never goes back within a process."""
        start_s = self._clock_s
        if start_s is None or t_s <= start_s:
            return
        self._clock_s = t_s
        if self.mark is None or self.mark.round is None:
            return
        key = (self.mark.round, self.mark.group, self.mark.phase)
        self._totals.setdefault(key, PhaseTotals()).seconds += t_s - start_s
        self._pending.append((start_s, t_s, key))

    def _read(self, reading: Reading) -> None:
        facts = self.facts
        if facts is None or not is_usable(facts, reading.values):
            return
        self._advance(reading.t_s)
        span = None if self._last is None else between(facts, self._last, reading, self._seen_w())
        if span is not None:
            for start_s, end_s, key in self._pending:
                self._add(facts, self._totals[key], span, start_s, end_s)
        if self._pending:
            self._totals[self._pending[-1][2]].readings += 1
        self._last = reading
        self._pending.clear()

    def _add(self, facts: MeterFacts, totals: PhaseTotals, span: Span, start_s: float, end_s: float) -> None:
        length_s = end_s - start_s
        totals.measured_s += length_s
        totals.gap_s += length_s if span.is_gap else 0.0
        totals.energy_j += span.energy_j(start_s, end_s)
        totals.uncertainty_j += span.uncertainty_w * length_s
        low_w, high_w = sorted((span.power_w(start_s), span.power_w(end_s)))
        totals.low_w = low_w if totals.low_w is None else min(totals.low_w, low_w)
        totals.high_w = high_w if totals.high_w is None else max(totals.high_w, high_w)
        if facts.source not in totals.sources:
            totals.sources += (facts.source,)
        totals.estimated = totals.estimated or facts.estimated

    def _seen_w(self) -> tuple[float, float] | None:
        bounds = [(totals.low_w, totals.high_w) for totals in self._totals.values()]
        lows = [low for low, _ in bounds if low is not None]
        highs = [high for _, high in bounds if high is not None]
        return (min(lows), max(highs)) if lows else None

    def _read_health(self, record: HealthReading) -> None:
        if self.mark is None or self.mark.round is None:
            return
        conditions = self._conditions.setdefault((self.mark.round, self.mark.group), BoardConditions())
        if record.temperature_c is not None:
            conditions.temperature_max_c = max(
                record.temperature_c, conditions.temperature_max_c or record.temperature_c
            )
        if record.cpu_hz is not None and self.mark.phase != "idle":
            conditions.cpu_min_hz = min(record.cpu_hz, conditions.cpu_min_hz or record.cpu_hz)
        if record.throttled is not None:
            since_boot = record.throttled_since_boot or ()
            if conditions.at_first is None:
                conditions.at_first = since_boot
            new = {*record.throttled, *since_boot} - (set(conditions.at_first) - set(record.throttled))
            conditions.throttled = tuple(sorted({*(conditions.throttled or ()), *new}))

    def _drop(self, record: DropRound) -> None:
        gone = (record.round, record.group)
        self._totals = {key: totals for key, totals in self._totals.items() if key[:2] != gone}
        self._conditions.pop(gone, None)
        self._pending = [part for part in self._pending if part[2][:2] != gone]
