import msgspec
import pytest

from edge_runtime.agent.energy_totals import Costs, to_message
from edge_runtime.energy.account import KEEP_S, EnergyAccount
from edge_runtime.energy.report import PhaseEnergy, RoundEnergy
from edge_runtime.wire.messages import decode_device, encode


@pytest.fixture
def metered(tmp_path, make_meter):
    """An account of a meter at 5 W whose time is the test's: `metered(seconds)` lets it pass."""
    now_s = [100.0]

    def make(path="energy.journal"):
        account = EnergyAccount(make_meter(), path=tmp_path / path, clock=lambda: now_s[0])

        def spend(seconds):
            for _ in range(round(seconds / 0.02)):
                now_s[0] += 0.02
                account.sample()

        account.spend = spend
        return account

    return make


def test_plan_has_its_joules_by_phase(metered, make_bundle):
    account, plan = metered(), make_bundle().plan(3)
    costs = Costs(account)
    account.spend(1.0)  # nobody's
    costs.begin(plan, "download")
    account.spend(1.0)
    costs.switch("train")
    account.spend(2.0)
    assert costs.energy(plan).energy_j == pytest.approx(15.0)
    costs.switch("upload")
    account.spend(1.0)
    spent = costs.end()
    account.spend(1.0)
    assert (spent.round, spent.group) == (3, "a+b")
    assert {name: phase.energy_j for name, phase in spent.energy.phases.items()} == {
        "download": pytest.approx(5.0),
        "train": pytest.approx(10.0),
        "upload": pytest.approx(5.0),
    }
    assert spent.energy.energy_j == pytest.approx(20.0)
    assert (spent.energy.source, spent.energy.estimated) == ("fake", False)
    assert decode_device(encode(spent)) == spent
    assert costs.end() is None


def test_plan_that_comes_again_goes_on_and_another_begins_at_nothing(metered, make_bundle):
    account, bundle = metered(), make_bundle()
    plan, costs = bundle.plan(3), Costs(account)
    costs.begin(plan, "train")
    account.spend(1.0)
    costs.end()
    costs.begin(plan, "train")
    account.spend(1.0)
    assert costs.end().energy.energy_j == pytest.approx(10.0)
    costs.begin(bundle.plan(3, value=9.0), "train")  # the same round of another federation
    account.spend(1.0)
    assert costs.end().energy.energy_j == pytest.approx(5.0)
    assert len(account.rounds()) == 1


def test_next_process_knows_what_a_killed_one_has_spent(metered, make_bundle):
    plan, first = make_bundle().plan(3), metered()
    Costs(first).begin(plan, "train")
    first.spend(1.0)
    second = metered()
    costs = Costs(second)
    costs.begin(plan, "download")
    second.spend(1.0)
    assert 10.0 - 5.0 * (KEEP_S + 0.02) <= costs.end().energy.energy_j <= 10.0


def test_close_keeps_only_a_plan_that_is_not_over(metered, make_bundle):
    account, costs = metered(), None
    costs = Costs(account)
    costs.begin(make_bundle().plan(3), "train")
    account.spend(1.0)
    costs.close()
    assert len(account.rounds()) == 1
    costs.end()
    costs.close()
    assert account.rounds() == set()


def test_figures_that_no_message_takes_are_not_measured():
    phase = PhaseEnergy(
        seconds=1.0, measured_s=1.0, energy_j=1e14, uncertainty_j=1.0, mean_w=1e14, min_w=None, max_w=None
    )
    found = RoundEnergy(
        round=1,
        group="a",
        source="mqtt:" + "x" * 300,
        covers="x" * 1000,
        estimated=False,
        sample_rate_hz=50.0,
        energy_j=1e14,
        uncertainty_j=1e14,
        idle_w=1e14,
        above_idle_j=None,
        seconds=1.0,
        measured_s=1.0,
        gap_s=0.0,
        phases={"train": phase},
        temperature_max_c=50.0,
        cpu_min_hz=None,
        throttled=("throttled",) * 20,
    )
    energy = to_message(found)
    assert (energy.energy_j, energy.idle_w, energy.phases["train"].energy_j) == (None, None, None)
    assert msgspec.json.decode(msgspec.json.encode(energy), type=type(energy)) == energy
