import msgspec
import pytest

from broker_server.__main__ import main
from broker_server.report.build import EnergyReport, Report, RoundReport
from broker_server.report.energy import EnergySum, PhaseSum
from broker_server.report.energy_costs import break_down
from broker_server.report.journals import join
from edge_runtime.wire.energy import Energy, PhaseEnergy
from edge_runtime.wire.messages import FinalEnergy

GROUP = "depth+edges"


def plan(joules, *, seconds=10.0, idle_w=1.0, estimated=False, **phases):
    return Energy(
        source="rapl",
        covers=None,
        estimated=estimated,
        energy_j=joules,
        uncertainty_j=None if joules is None else 0.5,
        idle_w=idle_w,
        sample_rate_hz=10.0,
        seconds=seconds,
        measured_s=seconds,
        gap_s=0.0,
        phases={name: PhaseEnergy(seconds=4.0, energy_j=each, uncertainty_j=None) for name, each in phases.items()},
        temperature_max_c=None,
        cpu_min_hz=None,
        throttled=None,
    )


def total(joules, measured, plans, *, above=None, **phases):
    return EnergySum(
        energy_j=joules,
        estimated_j=None if joules is None else 0.0,
        estimated=False,
        uncertainty_j=1.0 if measured else None,
        above_idle_j=above,
        measured=measured,
        plans=plans,
        partial=0 < measured < plans,
        phases={
            name: PhaseSum(seconds=4.0, energy_j=each, estimated_j=0.0, measured=measured, plans=plans)
            for name, each in phases.items()
        },
        temperature_max_c=None,
        throttled=None,
    )


def report(own, **energies):
    """A round of one group, with the energies that the devices have reported."""
    row = RoundReport(
        round=3,
        phase="merge",
        group=GROUP,
        clients=tuple(energies),
        train_loss={},
        val_loss=None,
        wall_s=1.0,
        bytes_up=None,
        bytes_down=None,
        update_schemes={},
        update_ratio=None,
        peak_rss_bytes=None,
        energy=own,
        energy_by_device=energies,
    )
    return Report(
        strategy="mas",
        tasks=("depth", "edges"),
        seed=0,
        versions={},
        rounds=[row],
        energy=EnergyReport(total=own, groups={GROUP: own, "other": total(None, 0, 1)}),
        affinity=None,
        split=None,
        test_loss={},
        wall_s=None,
    )


def entry(value, number=3, group=GROUP):
    return FinalEnergy(round=number, group=group, energy=value)


def test_join_counts_what_a_device_never_reported():
    before = report(total(40.0, 1, 2, above=30.0, train=40.0), a=plan(40.0, train=40.0), b=None)
    after, (said,) = join(before, "b", [entry(plan(25.0, train=20.0, upload=5.0, idle=None))])
    assert said == "b, round 3 (depth+edges): 25.0 J in its journal, nothing in the report: counted"
    (row,) = after.rounds
    for found in (row.energy, after.energy.total, after.energy.groups[GROUP]):
        assert (found.energy_j, found.measured, found.plans) == (65.0, 2, 2)
        assert (found.uncertainty_j, found.above_idle_j) == (1.5, 30.0 + 25.0 - 10.0)
        assert {name: each.energy_j for name, each in found.phases.items()} == {
            "train": 60.0,
            "upload": 5.0,
            "idle": None,
        }
        assert found.phases["train"].seconds == 8.0
        assert (found.phases["train"].measured, found.phases["train"].plans) == (2, 3)
    assert after.energy.groups["other"].energy_j is None
    assert row.energy_by_device["b"].energy_j == 25.0
    assert break_down(after).tasks == {"depth": 32.5, "edges": 32.5}


def test_join_takes_the_longer_of_two_accounts_of_a_plan():
    before = report(total(40.0, 1, 1, above=30.0, train=40.0), a=plan(40.0, train=40.0))
    more = plan(48.0, seconds=12.0, train=45.0, upload=3.0)
    after, (said,) = join(before, "a", [entry(more)])
    assert said.endswith("48.0 J in its journal, 40.0 J in the report: counted")
    found = after.energy.total
    assert (found.energy_j, found.measured, found.plans, found.above_idle_j) == (48.0, 1, 1, 30.0 + 36.0 - 30.0)
    assert {name: each.energy_j for name, each in found.phases.items()} == {"train": 45.0, "upload": 3.0}
    again, said = join(after, "a", [entry(more), entry(plan(7.0, seconds=2.0))])
    assert (again, said) == (after, [])


def test_join_counts_a_device_of_which_the_report_knows_nothing():
    after, _ = join(report(total(None, 0, 0)), "c", [entry(plan(9.0, estimated=True, train=9.0))])
    found = after.energy.total
    assert (found.energy_j, found.measured, found.plans, found.estimated) == (9.0, 1, 1, True)
    assert found.above_idle_j == -1.0


def test_join_without_a_baseline_nothing_is_said_of_what_is_above_it():
    before = report(total(40.0, 1, 1, above=30.0), a=plan(40.0))
    after, _ = join(before, "b", [entry(plan(5.0, idle_w=None))])
    assert after.energy.total.above_idle_j is None
    known = report(total(40.0, 1, 1), a=plan(40.0, idle_w=None))
    assert join(known, "b", [entry(plan(5.0))])[0].energy.total.above_idle_j is None


def test_join_leaves_out_what_was_not_measured_and_rounds_that_are_not_there():
    before = report(total(40.0, 1, 1), a=plan(40.0))
    after, said = join(before, "a", [entry(plan(None, seconds=99.0)), entry(plan(3.0), 8), entry(plan(4.0), 3, "x")])
    assert after == before
    assert said == [
        "a, round 8 (depth+edges): 3.0 J in its journal, of a round that the report does not have: not counted",
        "a, round 3 (x): 4.0 J in its journal, of a round that the report does not have: not counted",
    ]


@pytest.fixture
def run(tmp_path):
    """A run's folder: a report, and the journal of a device that was cut off in round 3."""
    from devices.meters.meter import MeterFacts
    from edge_runtime.energy.account import EnergyAccount

    class Meter:
        facts = MeterFacts(source="fake", covers="all", rate_hz=100.0, resolution=0.0, gain_error=0.0)

        def read(self):
            return (5.0,)

        def close(self):
            pass

    state = tmp_path / "devices" / "pi-01" / "state"
    state.mkdir(parents=True)
    with EnergyAccount(Meter(), path=state / "energy.journal") as account:
        account.begin(3, f"{GROUP}@0123456789abcdef")
        account.switch("train")
        for _ in range(50):
            account.sample()
    unreported = {"pi-01": None}
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report(total(None, 0, 1), **unreported)))
    return tmp_path


def test_energy_report_joins_the_journals_of_a_run(run, capsys):
    assert main(["energy-report", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("pi-01, round 3 (depth+edges): ")
    assert "(1 of 1" not in out
    assert "not measured" not in out.splitlines()[0]
    assert main(["energy-report", str(run / "report.json")]) == 0
    assert capsys.readouterr().out.startswith("in all not measured (0 of 1 plans measured)")
    named = ["--journal", f"pi-01={run / 'devices/pi-01/state'}"]
    assert main(["energy-report", str(run / "report.json"), *named]) == 0
    assert "nothing in the report: counted" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["pi-01", "pi-01=/nowhere", "=/tmp"])
def test_energy_report_says_what_is_no_journal(run, text, capsys):
    assert main(["energy-report", str(run), "--journal", text]) == 3
    assert capsys.readouterr().err.startswith(f"error: {text!r} is no device's journal: write NAME=FOLDER")
