"""The energy of each plan on this device, as messages carry it.

A plan's figures go on where a killed process left them; they are kept until another plan begins.
"""

from pathlib import Path
from typing import Protocol

from edge_runtime.energy.journal import Journal
from edge_runtime.energy.ledger import Ledger
from edge_runtime.wire.energy import Energy, Phase, bounded
from edge_runtime.wire.messages import FinalEnergy, Plan


class PlanAccount(Protocol):
    """A seam: keeps energy by (round, group); a device's EnergyAccount, or a simulation's modelled energy."""

    def rounds(self) -> set[tuple[int, str]]:
        """Return each (round, group) that has figures."""
        ...

    def drop(self, round_: int, group: str) -> None:
        """Drop the figures of one."""
        ...

    def begin(self, round_: int, group: str) -> None:
        """Begin one: time and energy are its own from now on."""
        ...

    def switch(self, phase: Phase) -> None:
        """Go on in another phase."""
        ...

    def end(self) -> None:
        """End it: time and energy belong to no round from now on."""
        ...

    def report(self, round_: int, group: str) -> Energy:
        """Return the energy of one up to now."""
        ...


class EnergyTotals:
    """Energy by plan, one plan at a time. Any thread may call `switch` and `energy`."""

    def __init__(self, account: PlanAccount) -> None:
        self._account = account
        self._plan: Plan | None = None

    def begin(self, plan: Plan, phase: Phase) -> None:
        """Begin a plan, or go on with it; the figures of other plans are dropped."""
        for other in self._account.rounds() - {_key(plan)}:
            self._account.drop(*other)
        self._plan = plan
        self._account.begin(*_key(plan))
        self._account.switch(phase)

    def switch(self, phase: Phase) -> None:
        """Go on in another phase of the plan, if there is one; cheap if the phase is the same."""
        self._account.switch(phase)

    def energy(self, plan: Plan) -> Energy:
        """Return a plan's energy up to now."""
        return bounded(self._account.report(*_key(plan)))

    def end(self) -> FinalEnergy | None:
        """End the plan and return its energy in all, once; None if there is no plan."""
        plan, self._plan = self._plan, None
        if plan is None:
            return None
        self._account.end()
        return FinalEnergy(round=plan.round, group=plan.group, energy=self.energy(plan))

    def close(self) -> None:
        """Drop the figures of plans that are over. A plan that is not over keeps its own, for the next process."""
        if self._plan is None:
            for key in self._account.rounds():
                self._account.drop(*key)


def read_journal(path: Path) -> list[FinalEnergy]:
    """Return the energy of each plan in a device's journal. Raises OSError."""
    ledger = Ledger()
    records, _torn = Journal(path).read()
    for record in records:
        ledger.apply(record)
    found = []
    for number, key in sorted(ledger.rounds()):
        group, at, _digest = key.rpartition("@")
        energy = bounded(ledger.report(number, key))
        found.append(FinalEnergy(round=number, group=group if at else key, energy=energy))
    return found


def _key(plan: Plan) -> tuple[int, str]:
    """Return the account's key of a plan: the weights' digest keeps apart plans of several federations in one round."""
    return plan.round, f"{plan.group}@{plan.weights.digest[:16]}"
