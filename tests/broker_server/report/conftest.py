import pytest

from broker_server.report.build import AffinityReport, EnergyReport, Report, RoundReport, SplitReport
from broker_server.report.energy import total


@pytest.fixture
def make_round():
    """A round of two devices that trained tasks `a` and `b`; `missing` were asked and gave no result."""

    def make(number, phase, group, loss, *, missing=(), energy=(), **more):
        clients = ("x", "y")
        plans = dict.fromkeys(sorted({*clients, *missing})) | dict(energy)
        facts = {
            "wall_s": 1.5,
            "bytes_up": 2**20,
            "bytes_down": None,
            "update_schemes": {"fp32": 2},
            "update_ratio": 1.0,
            "peak_rss_bytes": 3 * 2**20,
        }
        return RoundReport(
            round=number,
            phase=phase,
            group=group,
            clients=clients,
            train_loss=loss,
            val_loss=None,
            energy=total(tuple(plans.values())),
            energy_by_device=plans,
            **(facts | more),
        )

    return make


@pytest.fixture
def make_report(make_round):
    """A report of two tasks that were merged for two rounds and then went their own ways."""

    def make(**more):
        rounds = [
            make_round(1, "merge", "a+b", {"a": 2.0, "b": 4.0}),
            make_round(2, "merge", "a+b", {"a": 1.0, "b": 3.0}, missing=("z",)),
            make_round(4, "split", "a", {"a": 0.5}),
            make_round(5, "split", "b", {"b": 2.5}),
        ]
        facts = {
            "strategy": "mas",
            "tasks": ("a", "b"),
            "seed": 0,
            "versions": {"python": "3.11"},
            "rounds": rounds,
            "energy": EnergyReport(total=total([]), groups={}),
            "affinity": AffinityReport(tasks=("a", "b"), values=[[0.5, -0.2], [0.1, None]], counts=[[4, 4], [4, 0]]),
            "split": SplitReport(groups=(("a",), ("b",)), score=0.25, mode="exactly"),
            "test_loss": {
                "before": {"a": 2.0, "b": 4.0, "total": 6.0},
                "merged": {"a": 1.0, "b": 3.0, "total": 4.0},
                "end": {"a": 0.5, "b": 2.5, "total": 3.0},
            },
            "wall_s": 100.0,
            "settings": {"strategy": "mas", "groups": 2},
        }
        return Report(**(facts | more))

    return make
