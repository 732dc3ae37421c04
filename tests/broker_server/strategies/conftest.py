import numpy as np
import pytest

from broker_server.grouping.affinity import Affinities, AffinityLedger
from broker_server.strategies.planner import Measurements
from edge_runtime.wire.messages import Affinity

TASKS = ("a", "b", "c")
VALUES = np.array([[0, 5.0, 0], [5.0, 0, 0], [0, 0, 0]])


@pytest.fixture
def measured():
    """Makes what a federation of a, b and c has measured: a and b help one another, c neither."""

    def make(counts=1, losses=None, rounds=None, ledger=None, values=VALUES, joules=lambda *_: None):
        ones = np.ones((3, 3))
        found = Affinities(
            tasks=TASKS, values=values, counts=np.full((3, 3), counts), variance=ones, standard_error=ones
        )
        return Measurements(affinities=found, losses=losses or {}, rounds=rounds or {}, ledger=ledger, joules=joules)

    return make


@pytest.fixture
def walk():
    """All phases of a strategy, everything being measured from the start."""

    def make(strategy, measured):
        done = []
        while phase := strategy.next(done, measured):
            assert not strategy.may_end(phase, measured)
            done.append(phase)
        return done

    return make


@pytest.fixture
def ledger():
    """Makes the ledger of some rounds in which three devices agreed."""

    def make(rounds):
        found = AffinityLedger(TASKS)
        rows = tuple(tuple(float(value) for value in row) for row in VALUES)
        for number in range(rounds):
            for device in ("x", "y", "z"):
                found.add(number, device, Affinity(tasks=TASKS, count=1, mean=rows, variance=None))
        return found

    return make
