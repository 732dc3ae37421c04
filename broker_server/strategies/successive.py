"""Successive regularisation: tasks join one after another, and what earlier ones have made of the encoder is held.

With each task the group grows: it starts from the weights of the phase before, its new head from the bundle's, and the
encoder is held to where that phase left it, by δ‖θ − θ'‖². So it is a proximal term between phases, not between rounds.

Source: Hashimoto, Xiong, Tsuruoka, Socher, "A Joint Many-Task Model", EMNLP 2017, section 3. There each task trains
lower layers of its own alone, and all take turns in every epoch.
"""

# coverage: every branch

from collections.abc import Sequence

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.planner import Measurements, Phase, final
from edge_runtime.wire.names import Tasks


class Successive:
    """Train the first task, then the first two, and so on, `rounds` each, with `hold` as δ; then measure all."""

    def __init__(self, tasks: Tasks, *, order: Sequence[str], rounds: int, hold: float) -> None:
        if order and sorted(order) != sorted(tasks):
            raise SplitImpossible(f"grouping.order: it has {', '.join(order)}, and the tasks are {', '.join(tasks)}")
        self._order = tuple(order) or tuple(sorted(tasks))
        self._rounds = rounds
        self._hold = hold

    def next(self, done: Sequence[Phase], _measured: Measurements) -> Phase | None:
        """Return the phase after those that are done; None after the last."""
        if len(done) > len(self._order):
            return None
        if len(done) == len(self._order):
            tasks = tuple(sorted(self._order))
            return final(((tasks, tasks),), done[-1].name)
        group = tuple(sorted(self._order[: len(done) + 1]))
        return Phase(
            name=f"{len(done) + 1}: {self._order[len(done)]}"[:32],
            work="train",
            groups=(group,),
            start=done[-1].name if done else None,
            sources=done[-1].groups if done else None,
            rounds=self._rounds,
            hold=self._hold if done else 0.0,
        )

    def may_end(self, _phase: Phase, _measured: Measurements) -> bool:
        """Return False: no phase ends early."""
        return False
