"""The account of a device's energy: meter, health, sampler, ledger and journal, put together.

    with EnergyAccount(meter, health=probe, path=state / "energy.journal") as account:
        account.measure_idle(10.0)
        account.begin(round, group)
        with account.phase("train"):
            ...
        print(account.report(round, group).energy_j)
        account.forget(round, group)   # once the server has it

It may be used from any thread. It never raises for a meter or a disk that fails: the figures become None, or the
journal ends with a warning, and the work goes on.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edge_runtime.energy.journal import Journal, sync
from edge_runtime.energy.ledger import Ledger
from edge_runtime.energy.meter import EnergyMeter, HealthProbe
from edge_runtime.energy.records import Baseline, Condition, Facts, Forget, Mark, Record, Sample, Start
from edge_runtime.energy.report import RoundEnergy, phase_energy
from edge_runtime.energy.sampler import Sampler
from edge_runtime.wire.energy import Phase

HEALTH_S = 5.0
"""How often the board's health is looked at."""
SYNC_S = 1.0
"""How often the disk is made to keep the journal: a power cut costs so much at most."""
KEEP_S = 0.25
"""How often readings are journalled and summed, some at a time at half the cost: a process that is killed loses those
of so long at most, and the one that it was taking. Everything else is journalled at once."""
MAX_JOURNAL_BYTES = 1 << 20
"""Then the readings are replaced by their sums."""
_BEFORE = -1
"""The round of what is measured before the work."""

_log = logging.getLogger(__name__)


class EnergyAccount:
    """Joules for each (round, group, phase). Without a meter every energy is None; time and health are still kept.

    `reasons` says why there is no meter. With `path` the account goes on where a killed process left it. A context
    manager: the sampler's thread runs between enter and exit.
    """

    def __init__(
        self,
        meter: EnergyMeter | None,
        *,
        health: HealthProbe | None = None,
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
        self._fresh: list[Sample] = []
        self._kept_s = self._looked_s = -math.inf
        self._journal = None if path is None else Journal(path)
        self._facts = None if meter is None else _facts(meter)
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
            self._sample()
            self._settle()
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
        """What measures; None if nothing does."""
        return None if self._facts is None else self._facts.source

    @property
    def is_estimated(self) -> bool:
        """Whether what it says comes from a model."""
        return self._facts is not None and self._facts.estimated

    @property
    def idle_w(self) -> float | None:
        """Power of the idle board by this source, as it was last measured."""
        with self._lock:
            known = self._settle().baseline
            return None if known is None or known.source != self.source else known.idle_w

    def measure_idle(self, seconds: float, wait: Callable[[float], object] = time.sleep) -> float | None:
        """Measure the idle board for a while, in watts: the baseline of what is reported from now on."""
        before = self._ledger.mark
        self._mark(_BEFORE, "", "idle")
        wait(seconds)
        with self._lock:
            self._sample()
            idle_w = phase_energy(self._settle().tally(_BEFORE, "", "idle")).mean_w
            self._record(Mark(self._clock(), *_place(before)))
            self._record(Forget(_BEFORE, ""))
            if idle_w is not None and self._facts is not None:
                self._record(Baseline(self._facts.source, idle_w))
        return idle_w

    def begin(self, round_: int, group: str) -> None:
        """From now on time and energy are this round's; its phase is `idle` until another is named."""
        self._mark(round_, group, "idle")

    def end(self) -> None:
        """From now on time and energy are no round's."""
        self._mark(None, "", "idle")

    def switch(self, phase: Phase) -> None:
        """Go on in another phase of the same round. Cheap if it is the same, so it may be called at every step."""
        mark = self._ledger.mark
        if mark is None or mark.phase == phase:
            return  # without the lock, which is held while the meter is read
        with self._lock:
            mark = self._ledger.mark
            if mark is not None and mark.phase != phase:
                self._mark(mark.round, mark.group, phase)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """A phase of the round for as long as the block runs; then the one before goes on."""
        with self._lock:
            before: Phase = "idle" if self._ledger.mark is None else self._ledger.mark.phase
            self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def report(self, round_: int, group: str) -> RoundEnergy:
        """What a round has cost up to now."""
        with self._lock:
            self._look()
            mark = self._ledger.mark
            if not self._sample() and mark is not None:
                again = Mark(self._clock(), mark.round, mark.group, mark.phase)
                self._settle().apply(again)  # time goes on all the same
            return self._settle().report(round_, group, self.reasons)

    def rounds(self) -> set[tuple[int, str]]:
        """The (round, group) that there are figures of, those of a process before among them."""
        with self._lock:
            return self._settle().rounds()

    def forget(self, round_: int, group: str) -> None:
        """A round's figures have been delivered and need not be kept."""
        with self._lock:
            self._record(Forget(round_, group))

    def sample(self) -> None:
        """Read the meter, and every few seconds the board's health. The sampler's thread calls it."""
        with self._lock:
            self._sample()
            if self._read_s - self._looked_s >= HEALTH_S:
                self._look()
            if self._read_s - self._kept_s >= KEEP_S:
                self._kept_s = self._read_s
                books = self._settle()
                if self._journal is not None and self._journal.size_bytes > MAX_JOURNAL_BYTES:
                    self._keep(lambda journal: journal.restart(books.snapshot()))

    def sync(self) -> None:
        """Make the disk keep the journal. The syncer's thread calls it; nobody waits for the disk meanwhile."""
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
                self._look()  # what happened up to now is not the next round's
            self._sample()
            self._record(Mark(self._clock(), round_, group, phase))
            if is_other:
                self._look()

    def _sample(self) -> bool:
        """Read the meter; whether it gave something."""
        start_s = self._read_s = self._clock()
        values = None if self._meter is None else self._meter.read()
        if values is None:
            return False
        # A reading is of some moment between asking and answer.
        self._fresh.append(Sample((start_s + self._clock()) / 2, values))
        return True

    def _settle(self) -> Ledger:
        """The ledger with every reading in it; the journal has them then, too."""
        if self._fresh:
            for sample in self._fresh:
                self._ledger.apply(sample)
            self._keep(lambda journal: journal.append(*self._fresh))
            self._fresh.clear()
        return self._ledger

    def _look(self) -> None:
        self._looked_s = self._clock()
        if self._health is None:
            return
        found = self._health()
        self._record(
            Condition(self._clock(), found.temperature_c, found.cpu_hz, found.throttled, found.throttled_since_boot)
        )

    def _record(self, record: Record) -> None:
        self._settle().apply(record)
        self._keep(lambda journal: journal.append(record))

    def _keep(self, act: Callable[[Journal], None]) -> None:
        """Do something with the journal, or go on without one."""
        if self._journal is None:
            return
        try:
            act(self._journal)
        except OSError as exc:
            _log.warning("energy is no longer journalled, a restart will not know it: %s", exc)
            self._journal = None

    def _resume(self) -> None:
        """Take up what a process before has left, in a new file."""

        def take_up(journal: Journal) -> None:
            records, torn = journal.read()
            for record in records:
                self._ledger.apply(record)
            if torn:
                _log.info("the energy journal had %d torn lines, which were left out", torn)
            self._ledger.apply(Start(self._clock(), self._facts))
            journal.restart(self._ledger.snapshot())

        self._keep(take_up)
        if self._journal is None:
            self._ledger.apply(Start(self._clock(), self._facts))


def _facts(meter: EnergyMeter) -> Facts:
    """What a meter says of itself, as a record."""
    return Facts(**{name: getattr(meter.facts, name) for name in Facts.__struct_fields__})


def _place(mark: Mark | None) -> tuple[int | None, str, Phase]:
    return (None, "", "idle") if mark is None else (mark.round, mark.group, mark.phase)
