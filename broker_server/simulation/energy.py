"""A simulated device's energy: stated watts over simulated seconds. Every figure is with_labels as an estimate."""

# coverage: every branch

from collections.abc import Callable
from dataclasses import dataclass, field

from edge_runtime.wire.energy import Energy, Phase, PhaseEnergy


@dataclass(frozen=True, kw_only=True)
class BoardPower:
    """Power of a board in watts: computing, and waiting or transferring."""

    busy_w: float
    idle_w: float


@dataclass
class _Interval:
    begun_s: float
    ended_s: float | None = None
    waited_s: float = 0.0
    work: dict[Phase, float] = field(default_factory=dict)


class SimulatedAccount:
    """Joules of (round, group): each second of work at the busy board's power, all others at the idle board's.

    `clock` is the simulation's, in seconds. What has begun and not ended is reported by its work alone.
    """

    def __init__(self, power: BoardPower, clock: Callable[[], float]) -> None:
        self._power = power
        self._clock = clock
        self._books: dict[tuple[int, str], _Interval] = {}
        self._open: tuple[int, str] | None = None

    def rounds(self) -> set[tuple[int, str]]:
        """Return the rounds and groups that there are figures of."""
        return set(self._books)

    def drop(self, round_: int, group: str) -> None:
        """Drop the figures of one."""
        self._books.pop((round_, group), None)

    def begin(self, round_: int, group: str) -> None:
        """From now on time and energy are this one's."""
        self._open = (round_, group)
        self._books.setdefault(self._open, _Interval(self._clock()))

    def switch(self, phase: Phase) -> None:
        """Ignore the phase: `work` has its modelled seconds, the rest is waiting."""

    def work(self, phase: Phase, seconds: float, waiting_s: float = 0.0) -> None:
        """Begin work of some modelled seconds, which waits for others for `waiting_s` more."""
        if self._open is not None:
            book = self._books[self._open]
            book.work[phase] = book.work.get(phase, 0.0) + seconds
            book.waited_s += waiting_s

    def end(self) -> None:
        """End the interval: later energy belongs to no round."""
        if self._open is not None:
            self._books[self._open].ended_s = self._clock()
            self._open = None

    def report(self, round_: int, group: str) -> Energy:
        """Return the figures of a round and group up to now."""
        book = self._books[round_, group]
        worked_s = sum(book.work.values())
        seconds = worked_s + book.waited_s
        if book.ended_s is not None:
            seconds = max(seconds, book.ended_s - book.begun_s)
        phases = {name: _phase(s, self._power.busy_w) for name, s in book.work.items()}
        if seconds > worked_s:
            phases["idle"] = _phase(seconds - worked_s, self._power.idle_w)
        energy_j = sum(phase.energy_j or 0.0 for phase in phases.values())
        return Energy(
            source=f"simulated: {self._power.busy_w:g} W at work, {self._power.idle_w:g} W else",
            covers="a model, not a meter",
            estimated=True,
            sample_rate_hz=None,
            energy_j=energy_j,
            uncertainty_j=None,
            idle_w=self._power.idle_w,
            seconds=seconds,
            measured_s=0.0,
            gap_s=0.0,
            phases=phases,
            temperature_max_c=None,
            cpu_min_hz=None,
            throttled=None,
        )


def _phase(seconds: float, watts: float) -> PhaseEnergy:
    return PhaseEnergy(seconds=seconds, energy_j=watts * seconds, uncertainty_j=None)
