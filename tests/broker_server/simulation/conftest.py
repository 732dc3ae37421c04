"""Summaries of runs that nobody ran."""

import pytest

from broker_server.simulation.summary import Summary


@pytest.fixture
def make_summary():
    def make(method="MAS-2", seed=0, **others):
        given = {"strategy": "mas", "test_loss": {"depth": 0.25, "total": 0.25}, "groups": (("depth",),), "rounds": 3}
        given |= {"compute_s": 12.4, "critical_path_s": 6.0, "simulated_s": 9.0, "simulated_j": 50.0}
        return Summary(**{"method": method, "seed": seed, "bytes_up": 1, "bytes_down": 2, **given, **others})

    return make
