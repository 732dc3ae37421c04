import msgspec
import pytest

from broker_server.__main__ import main
from broker_server.report.energy_costs import Plan, Report, costs
from broker_server.report.journals import Journalled, join

GROUP = "depth+edges"


def part(joules, seconds=4.0):
    return {"seconds": seconds, "energy_j": joules}


def plan(joules, *, seconds=10.0, idle_w=1.0, estimated=False, **phases):
    found = {
        "energy_j": joules,
        "uncertainty_j": None if joules is None else 0.5,
        "estimated": estimated,
        "idle_w": idle_w,
        "seconds": seconds,
        "phases": {name: part(value) for name, value in phases.items()},
    }
    return msgspec.convert(found, Plan)


def total(joules, measured, plans, *, above=None, **phases):
    return {
        "energy_j": joules,
        "estimated": False,
        "uncertainty_j": 1.0 if measured else None,
        "above_idle_j": above,
        "measured": measured,
        "plans": plans,
        "phases": {name: part(value) for name, value in phases.items()},
    }


def report(own, **told):
    """A round of one group, which the devices have told this of."""
    found = {
        "tasks": ["depth", "edges"],
        "rounds": [
            {
                "round": 3,
                "phase": "merge",
                "group": GROUP,
                "train_loss": {},
                "energy": own,
                "energy_by_device": {name: msgspec.to_builtins(value) for name, value in told.items()},
            }
        ],
        "energy": {"total": own, "groups": {GROUP: own, "other": total(None, 0, 1)}},
        "test_loss": {},
    }
    return msgspec.convert(found, Report)


def entry(value, number=3, group=GROUP):
    return Journalled(round=number, group=group, plan=value)


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
    assert after.energy.groups["other"].energy_j is None
    assert row.energy_by_device["b"].energy_j == 25.0
    assert costs(after).tasks == {"depth": 32.5, "edges": 32.5}


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
    from edge_runtime.energy.account import EnergyAccount

    class Meter:
        class facts:
            source, covers, rate_hz, resolution, gain_error = "fake", "all", 100.0, 0.0, 0.0
            estimated, counter_ranges_j = False, None

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
    told = {"pi-01": None}
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report(total(None, 0, 1), **told)))
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
