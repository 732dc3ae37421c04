"""The energy account of a device: meter, health, sampler, ledger and journal, put together.

    with EnergyAccount(meter, health=probe, path=state / "energy.journal") as account:
        account.measure_idle(10.0)
        account.begin(round, group)
        with account.phase("train"):
            ...
        print(account.report(round, group).energy_j)
        account.drop(round, group)   # once the server has it

Any thread may use it. It never raises for a meter or a disk that fails: the figures become None, or the journal ends
with a warning, and the work goes on.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from devices.health import Health
from devices.meters import Meter
from edge_runtime.energy.journal import Journal, sync
from edge_runtime.energy.ledger import Ledger
from edge_runtime.energy.records import (
    Baseline,
    DropRound,
    HealthReading,
    Mark,
    PhaseTotals,
    Reading,
    Record,
    Start,
)
from edge_runtime.energy.report import mean_w
from edge_runtime.energy.sampler import Sampler
from edge_runtime.wire.energy import Energy, Phase

HEALTH_S = 5.0
"""Seconds between two readings of the board's health."""
SYNC_S = 1.0
"""Seconds between two syncs of the journal to the disk: the most that a power cut loses."""
KEEP_S = 0.25
"""Seconds for which readings are collected before they are journalled and summed, which halves the cost of each. A
process that is killed loses these at most, and the reading under way. Everything else is journalled at once."""
MAX_JOURNAL_BYTES = 1 << 20
"""The size from which on a journal's readings are replaced by their totals."""
_BEFORE = -1
"""The round that stands for the time before the work."""

_log = logging.getLogger(__name__)


class EnergyAccount:
    """Joules for each (round, group, phase). Without a meter every energy is None; time and health are still kept.

    `health` is called every few seconds, and at the beginning and the end of a round; it never raises. `reasons` states
    why there is no meter. With `path` the account goes on where a killed process left it. A context manager: the
    sampler's thread runs between enter and exit.
    """

    def __init__(
        self,
        meter: Meter | None,
        *,
        health: Callable[[], Health] | None = None,
        path: Path | None = None,
        reasons: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = meter
        self._health = health
        self.reasons = reasons
        self._clock = clock
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._fresh: list[Reading] = []
        self._kept_s = self._looked_s = -math.inf
        self._journal = None if path is None else Journal(path)
        self._facts = None if meter is None else meter.facts
        self._sampler = Sampler(self.sample, 1 / HEALTH_S if self._facts is None else self._facts.rate_hz)
        self._syncer = Sampler(self.sync, 1 / SYNC_S)
        self._resume()

    def __enter__(self) -> "EnergyAccount":  # noqa: PYI034 - typing has no Self before 3.11
        self._sampler.start()
        self._syncer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.stop()
        with self._lock:
            self._read_meter()
            self._settled()
        self._syncer.stop()
        self.sync()
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
        if self._meter is not None:
            self._meter.close()

    @property
    def source(self) -> str | None:
        """The name of the meter; None if nothing measures."""
        return None if self._facts is None else self._facts.source

    @property
    def covers(self) -> str:
        """What the meter's figures include and leave out; empty if nothing measures."""
        return "" if self._facts is None else self._facts.covers

    @property
    def is_estimated(self) -> bool:
        """True if the figures come from a model."""
        return self._facts is not None and self._facts.estimated

    @property
    def idle_w(self) -> float | None:
        """The power of the idle board by this source, as it was last measured."""
        with self._lock:
            known = self._settled().baseline
            return None if known is None or known.source != self.source else known.idle_w

    def measure_idle(self, seconds: float, wait: Callable[[float], object] = time.sleep) -> float | None:
        """Measure the idle board's power, in watts: the baseline of all energy that is reported from now on."""
        before = self._ledger.mark
        self._mark(_BEFORE, "", "idle")
        wait(seconds)
        with self._lock:
            self._read_meter()
            idle_w = mean_w(self._settled().totals(_BEFORE, "").get("idle", PhaseTotals()))
            self._record(Mark(self._clock(), *_place(before)))
            self._record(DropRound(_BEFORE, ""))
            if idle_w is not None and self._facts is not None:
                self._record(Baseline(self._facts.source, idle_w))
        return idle_w

    def begin(self, round_: int, group: str) -> None:
        """Begin a round: time and energy are its own from now on, in the phase `idle` until another is named."""
        self._mark(round_, group, "idle")

    def end(self) -> None:
        """End the round: time and energy belong to no round from now on."""
        self._mark(None, "", "idle")

    def switch(self, phase: Phase) -> None:
        """Go on in another phase of the same round; cheap enough for every step if the phase is the same."""
        mark = self._ledger.mark
        if mark is None or mark.phase == phase:
            return  # without the lock, which is held while the meter is read
        with self._lock:
            mark = self._ledger.mark
            if mark is not None and mark.phase != phase:
                self._mark(mark.round, mark.group, phase)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Switch to a phase of the round while the block runs; then go on in the phase before."""
        with self._lock:
            before: Phase = "idle" if self._ledger.mark is None else self._ledger.mark.phase
            self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def report(self, round_: int, group: str) -> Energy:
        """Return a round's energy up to now."""
        with self._lock:
            self._read_health()
            mark = self._ledger.mark
            if not self._read_meter() and mark is not None:
                again = Mark(self._clock(), mark.round, mark.group, mark.phase)
                self._settled().apply(again)  # time goes on all the same
            return self._settled().report(round_, group)

    def totals(self, round_: int, group: str) -> dict[Phase, PhaseTotals]:
        """Return the totals of a round's phases up to its last report."""
        with self._lock:
            return self._settled().totals(round_, group)

    def rounds(self) -> set[tuple[int, str]]:
        """Return each (round, group) that has figures, those of an earlier process included."""
        with self._lock:
            return self._settled().rounds()

    def drop(self, round_: int, group: str) -> None:
        """Drop a round's figures, which have been delivered."""
        with self._lock:
            self._record(DropRound(round_, group))

    def sample(self) -> None:
        """Read the meter, and every few seconds the board's health. The sampler's thread calls it."""
        with self._lock:
            self._read_meter()
            if self._read_s - self._looked_s >= HEALTH_S:
                self._read_health()
            if self._read_s - self._kept_s >= KEEP_S:
                self._kept_s = self._read_s
                ledger = self._settled()
                if self._journal is not None and self._journal.size_bytes > MAX_JOURNAL_BYTES:
                    self._write(lambda journal: journal.restart(ledger.snapshot()))

    def sync(self) -> None:
        """Make the disk keep the journal. The syncer's thread calls it, and no other thread waits for the disk."""
        with self._lock:
            descriptor = None if self._journal is None else self._journal.descriptor()
        if descriptor is None:
            return
        try:
            sync(descriptor)
        except OSError as exc:
            _log.warning("the energy journal may not survive a power cut: %s", exc)

    def _mark(self, round_: int | None, group: str, phase: Phase) -> None:
        with self._lock:
            before = self._ledger.mark
            is_other = before is None or (before.round, before.group) != (round_, group)
            if is_other:
                self._read_health()  # until now it is not the next round's
            self._read_meter()
            self._record(Mark(self._clock(), round_, group, phase))
            if is_other:
                self._read_health()

    def _read_meter(self) -> bool:
        """Read the meter; return whether it gave a value."""
        start_s = self._read_s = self._clock()
        values = None if self._meter is None else self._meter.read()
        if values is None:
            return False
        # A reading is of some moment between asking and answer.
        self._fresh.append(Reading((start_s + self._clock()) / 2, values))
        return True

    def _settled(self) -> Ledger:
        """Return the ledger with every reading applied and journalled."""
        if self._fresh:
            for reading in self._fresh:
                self._ledger.apply(reading)
            self._write(lambda journal: journal.append(*self._fresh))
            self._fresh.clear()
        return self._ledger

    def _read_health(self) -> None:
        self._looked_s = self._clock()
        if self._health is None:
            return
        found = self._health()
        self._record(
            HealthReading(self._clock(), found.temperature_c, found.cpu_hz, found.throttled, found.throttled_since_boot)
        )

    def _record(self, record: Record) -> None:
        self._settled().apply(record)
        self._write(lambda journal: journal.append(record))

    def _write(self, act: Callable[[Journal], None]) -> None:
        """Apply `act` to the journal, or go on without one where it fails."""
        if self._journal is None:
            return
        try:
            act(self._journal)
        except OSError as exc:
            _log.warning("energy is no longer journalled, and a restart loses it: %s", exc)
            self._journal = None

    def _resume(self) -> None:
        """Apply the journal of an earlier process, and go on in a new file."""

        def take_up(journal: Journal) -> None:
            records, torn = journal.read()
            for record in records:
                self._ledger.apply(record)
            if torn:
                _log.info("the energy journal had %d torn lines, which were left out", torn)
            self._ledger.apply(Start(self._clock(), self._facts))
            journal.restart(self._ledger.snapshot())

        self._write(take_up)
        if self._journal is None:
            self._ledger.apply(Start(self._clock(), self._facts))


def _place(mark: Mark | None) -> tuple[int | None, str, Phase]:
    return (None, "", "idle") if mark is None else (mark.round, mark.group, mark.phase)
