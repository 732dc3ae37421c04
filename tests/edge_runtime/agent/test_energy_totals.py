import pytest

from edge_runtime.agent.energy_totals import EnergyTotals, read_journal
from edge_runtime.energy.account import KEEP_S, EnergyAccount
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
    totals = EnergyTotals(account)
    account.spend(1.0)  # nobody's
    totals.begin(plan, "download")
    account.spend(1.0)
    totals.switch("train")
    account.spend(2.0)
    assert totals.energy(plan).energy_j == pytest.approx(15.0)
    totals.switch("upload")
    account.spend(1.0)
    spent = totals.end()
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
    assert totals.end() is None


def test_plan_that_comes_again_goes_on_and_another_begins_at_nothing(metered, make_bundle):
    account, bundle = metered(), make_bundle()
    plan, totals = bundle.plan(3), EnergyTotals(account)
    totals.begin(plan, "train")
    account.spend(1.0)
    totals.end()
    totals.begin(plan, "train")
    account.spend(1.0)
    assert totals.end().energy.energy_j == pytest.approx(10.0)
    totals.begin(bundle.plan(3, value=9.0), "train")  # the same round of another federation
    account.spend(1.0)
    assert totals.end().energy.energy_j == pytest.approx(5.0)
    assert len(account.rounds()) == 1


def test_next_process_knows_what_a_killed_one_has_spent(metered, make_bundle):
    plan, first = make_bundle().plan(3), metered()
    EnergyTotals(first).begin(plan, "train")
    first.spend(1.0)
    second = metered()
    totals = EnergyTotals(second)
    totals.begin(plan, "download")
    second.spend(1.0)
    assert 10.0 - 5.0 * (KEEP_S + 0.02) <= totals.end().energy.energy_j <= 10.0


def test_close_keeps_only_a_plan_that_is_not_over(metered, make_bundle):
    account, totals = metered(), None
    totals = EnergyTotals(account)
    totals.begin(make_bundle().plan(3), "train")
    account.spend(1.0)
    totals.close()
    assert len(account.rounds()) == 1
    totals.end()
    totals.close()
    assert account.rounds() == set()


def test_journal_gives_the_energy_of_each_plan(metered, make_bundle, tmp_path):
    account, plan = metered(), make_bundle().plan(3)
    EnergyTotals(account).begin(plan, "train")
    account.spend(1.0)
    account.begin(1, "without a digest")
    account.spend(1.0)
    named, plans = read_journal(tmp_path / "energy.journal")
    assert (named.round, named.group) == (1, "without a digest")
    assert (plans.round, plans.group) == (3, "a+b")
    assert plans.energy.energy_j == pytest.approx(5.0, abs=0.2)
