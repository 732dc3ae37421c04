"""The ledger: what all records so far come to. No clock, no files; a journal is read back by applying its records.

Rules
- Every record with a time moves the ledger's clock on; the time since the one before belongs to the phase of then.
- Energy comes with readings: what two readings enclose is divided among the phases in between, by time.
- A Start breaks the chain: between the end of one process and the start of the next nothing was measured and no time
  counts.
- `snapshot` gives records that stand for all before them; applied to an empty ledger they give the same ledger.
"""

# coverage: every branch

from edge_runtime.energy.integration import Reading, Span, between, is_usable
from edge_runtime.energy.records import (
    Baseline,
    Condition,
    Facts,
    Forget,
    Mark,
    Outlook,
    Record,
    Sample,
    Start,
    Tally,
    Total,
    Weather,
)
from edge_runtime.energy.report import RoundEnergy, round_energy
from edge_runtime.wire.energy import Phase

Key = tuple[int, str, Phase]


class Ledger:
    """Tallies by (round, group, phase), and how the board was in each round."""

    def __init__(self) -> None:
        self.facts: Facts | None = None
        self.baseline: Baseline | None = None
        self.mark: Mark | None = None
        self._tallies: dict[Key, Tally] = {}
        self._weather: dict[tuple[int, str], Weather] = {}
        self._clock_s: float | None = None
        self._last: Reading | None = None
        self._pending: list[tuple[float, float, Key]] = []
        """Parts of the time since the last reading: start, end, whose."""

    def apply(self, record: Record) -> None:
        """Take in a record. Records that make no sense where they stand (an odd file) change nothing."""
        if isinstance(record, Sample):
            self._sample(record)
        elif isinstance(record, Mark):
            self._advance(record.t_s)
            self.mark = record
        elif isinstance(record, Condition):
            self._advance(record.t_s)
            self._condition(record)
        elif isinstance(record, Start):
            self._clock_s, self._last, self.mark, self.facts = record.t_s, None, None, record.facts
            self._pending.clear()
        elif isinstance(record, Total):
            self._tallies[record.round, record.group, record.phase] = record.tally
        elif isinstance(record, Outlook):
            self._weather[record.round, record.group] = record.weather
        elif isinstance(record, Baseline):
            self.baseline = record
        else:
            self._forget(record)

    def tally(self, round_: int, group: str, phase: Phase) -> Tally:
        """A phase's tally so far; empty if there is none."""
        return self._tallies.get((round_, group, phase), Tally())

    def report(self, round_: int, group: str, reasons: tuple[str, ...] = ()) -> RoundEnergy:
        """What a round has cost so far."""
        tallies: dict[Phase, Tally] = {
            key[2]: tally for key, tally in self._tallies.items() if key[:2] == (round_, group)
        }
        return round_energy(
            round_,
            group,
            tallies,
            covers=None if self.facts is None else self.facts.covers,
            baseline=None if self.baseline is None else (self.baseline.source, self.baseline.idle_w),
            weather=self._weather.get((round_, group), Weather()),
            reasons=reasons,
        )

    def rounds(self) -> set[tuple[int, str]]:
        """The (round, group) that it knows something of."""
        return {key[:2] for key in self._tallies} | set(self._weather)

    def snapshot(self) -> list[Record]:
        """Records that stand for all so far. Time since the last reading, if any has passed, stays not measured."""
        records: list[Record] = []
        if self._clock_s is not None:
            records.append(Start(self._clock_s, self.facts))
        records += [Total(*key, tally) for key, tally in self._tallies.items()]
        records += [Outlook(*key, weather) for key, weather in self._weather.items()]
        if self.baseline is not None:
            records.append(self.baseline)
        if self._last is not None and not self._pending:
            records.append(Sample(self._last.t_s, self._last.values))
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
        self._tallies.setdefault(key, Tally()).seconds += t_s - start_s
        self._pending.append((start_s, t_s, key))

    def _sample(self, record: Sample) -> None:
        facts = self.facts
        if facts is None or not is_usable(facts, record.values):
            return
        self._advance(record.t_s)
        reading = Reading(record.t_s, record.values)
        span = None if self._last is None else between(facts, self._last, reading, self._seen_w())
        if span is not None:
            for start_s, end_s, key in self._pending:
                self._add(facts, self._tallies[key], span, start_s, end_s)
        if self._pending:
            self._tallies[self._pending[-1][2]].readings += 1
        self._last = reading
        self._pending.clear()

    def _add(self, facts: Facts, tally: Tally, span: Span, start_s: float, end_s: float) -> None:
        length_s = end_s - start_s
        tally.measured_s += length_s
        tally.gap_s += length_s if span.is_gap else 0.0
        tally.energy_j += span.energy_j(start_s, end_s)
        tally.uncertainty_j += span.uncertainty_w * length_s
        low_w, high_w = sorted((span.power_w(start_s), span.power_w(end_s)))
        tally.low_w = low_w if tally.low_w is None else min(tally.low_w, low_w)
        tally.high_w = high_w if tally.high_w is None else max(tally.high_w, high_w)
        if facts.source not in tally.sources:
            tally.sources += (facts.source,)
        tally.estimated = tally.estimated or facts.estimated

    def _seen_w(self) -> tuple[float, float] | None:
        bounds = [(tally.low_w, tally.high_w) for tally in self._tallies.values()]
        lows = [low for low, _ in bounds if low is not None]
        highs = [high for _, high in bounds if high is not None]
        return (min(lows), max(highs)) if lows else None

    def _condition(self, record: Condition) -> None:
        if self.mark is None or self.mark.round is None:
            return
        weather = self._weather.setdefault((self.mark.round, self.mark.group), Weather())
        if record.temperature_c is not None:
            weather.temperature_max_c = max(record.temperature_c, weather.temperature_max_c or record.temperature_c)
        if record.cpu_hz is not None and self.mark.phase != "idle":
            weather.cpu_min_hz = min(record.cpu_hz, weather.cpu_min_hz or record.cpu_hz)
        if record.throttled is not None:
            since_boot = record.throttled_since_boot or ()
            if weather.at_first is None:
                weather.at_first = since_boot
            new = {*record.throttled, *since_boot} - (set(weather.at_first) - set(record.throttled))
            weather.throttled = tuple(sorted({*(weather.throttled or ()), *new}))

    def _forget(self, record: Forget) -> None:
        gone = (record.round, record.group)
        self._tallies = {key: tally for key, tally in self._tallies.items() if key[:2] != gone}
        self._weather.pop(gone, None)
        self._pending = [part for part in self._pending if part[2][:2] != gone]
