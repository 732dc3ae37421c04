"""What plans cost this device: the energy account's figures, plan by plan, as messages carry them.

A plan's figures go on where a killed process left them; they are kept until another plan begins.
"""

from typing import Protocol

from edge_runtime.energy.report import RoundEnergy
from edge_runtime.wire.energy import MAX_COVERS, MAX_FLAGS, MAX_J, MAX_SOURCE, MAX_W, Energy, Phase, PhaseEnergy
from edge_runtime.wire.messages import Plan, Spent


class Account(Protocol):
    """A seam: what keeps the books, a device's EnergyAccount or a simulation's rules."""

    def rounds(self) -> set[tuple[int, str]]:
        """The rounds and groups that there are figures of."""
        ...

    def forget(self, round_: int, group: str) -> None:
        """Drop the figures of one."""
        ...

    def begin(self, round_: int, group: str) -> None:
        """From now on time and energy are this one's."""
        ...

    def switch(self, phase: Phase) -> None:
        """Go on in another phase."""
        ...

    def end(self) -> None:
        """What follows belongs to no round."""
        ...

    def report(self, round_: int, group: str) -> RoundEnergy:
        """The figures of one, up to now."""
        ...


class Costs:
    """Books energy by plan, one at a time. `switch` and `energy` may be used from any thread."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._plan: Plan | None = None

    def begin(self, plan: Plan, phase: Phase) -> None:
        """From now on time and energy are this plan's; figures of others are dropped."""
        for other in self._account.rounds() - {_key(plan)}:
            self._account.forget(*other)
        self._plan = plan
        self._account.begin(*_key(plan))
        self._account.switch(phase)

    def switch(self, phase: Phase) -> None:
        """Go on in another phase of the plan, if there is one. Cheap if it is the same."""
        self._account.switch(phase)

    def energy(self, plan: Plan) -> Energy:
        """What a plan has cost up to now."""
        return to_message(self._account.report(*_key(plan)))

    def end(self) -> Spent | None:
        """The plan is over: what it has cost in all, once; None if there is none."""
        plan, self._plan = self._plan, None
        if plan is None:
            return None
        self._account.end()
        return Spent(round=plan.round, group=plan.group, energy=self.energy(plan))

    def close(self) -> None:
        """Nothing more is spent here. What a plan that is not over has cost stays, for the next process."""
        if self._plan is None:
            for key in self._account.rounds():
                self._account.forget(*key)


def to_message(found: RoundEnergy) -> Energy:
    """A round's figures as a message carries them; a broken sensor's, which no message takes, are not measured."""
    return Energy(
        source=None if found.source is None else found.source[:MAX_SOURCE],
        covers=None if found.covers is None else found.covers[:MAX_COVERS],
        estimated=found.estimated,
        energy_j=_at_most(found.energy_j, MAX_J),
        uncertainty_j=_at_most(found.uncertainty_j, MAX_J),
        idle_w=_at_most(found.idle_w, MAX_W),
        sample_rate_hz=found.sample_rate_hz,
        seconds=found.seconds,
        measured_s=found.measured_s,
        gap_s=found.gap_s,
        phases={
            name: PhaseEnergy(
                seconds=phase.seconds,
                energy_j=_at_most(phase.energy_j, MAX_J),
                uncertainty_j=_at_most(phase.uncertainty_j, MAX_J),
            )
            for name, phase in found.phases.items()
        },
        temperature_max_c=found.temperature_max_c,
        cpu_min_hz=found.cpu_min_hz,
        throttled=None if found.throttled is None else found.throttled[:MAX_FLAGS],
    )


def _at_most(value: float | None, limit: float) -> float | None:
    return None if value is None or value > limit else value


def _key(plan: Plan) -> tuple[int, str]:
    """What the account knows a plan by: the weights keep apart what another federation has asked for in that round."""
    return plan.round, f"{plan.group}@{plan.weights.digest[:16]}"
