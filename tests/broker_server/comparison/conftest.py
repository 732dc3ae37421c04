"""Summaries of runs that nobody ran."""

import pytest

from broker_server.simulation.summary import Summary


@pytest.fixture
def summary():
    def make(method, seed=0, strategy="mas", loss=1.0, compute_s=100.0, **others):
        losses = None if loss is None else {"depth": loss / 4, "edge_texture": loss * 3 / 4, "total": loss}
        return Summary(
            **{
                "method": method,
                "seed": seed,
                "strategy": strategy,
                "test_loss": losses,
                "groups": (("depth",), ("edge_texture",)),
                "rounds": 12,
                "compute_s": compute_s,
                "critical_path_s": 10.0,
                "simulated_s": 50.0,
                "simulated_j": 2000.0,
                "bytes_up": 3_000_000,
                "bytes_down": 5_000_000,
                **others,
            }
        )

    return make
