"""Simulated federations: the same state machines, so the same weights, as with processes over MQTT."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.rounds.journal import FederationJournal

LIMIT_S = 240.0
pytestmark = pytest.mark.workstation

MAS = '[methods."MAS-2"]\nstrategy = "mas"\ngroups = 2\n'


def test_a_simulated_federation_ends_with_the_weights_of_real_processes_over_mqtt(bench):
    server = bench.site.serve(min_devices=2)
    devices = [bench.site.device(name, count) for name, count in (("attic", 10), ("cellar", 7))]
    real = bench.site.ends(server, *devices)
    said = bench.run(bench.experiment(MAS))
    assert "MAS-2 · seed 7: test loss" in said
    assert bench.models("MAS-2") == real
    summary = bench.summaries()["MAS-2", 7]
    assert summary["test_loss"] == pytest.approx(bench.site.report()["test_loss"]["end"])
    measured = bench.site.report()["test_metrics"]["end"]
    for task, mean in summary["test_metric"].items():
        assert mean["value"] == pytest.approx(measured[task]["value"])
    assert {task: mean["name"] for task, mean in measured.items()} == {
        "depth": "rmse",
        "normals": "angular_error_deg",
        "segmentation": "miou",
    }
    assert summary["rounds"] == 4
    assert summary["simulated_j"] > 0
    assert summary["simulated_s"] > 0


def test_trials_on_processes_that_are_killed_end_as_the_simulated_ones(bench):
    """The groups are tried in ordinary rounds: what is cut off in the middle of them goes on, to the same bits."""
    trials = {"grouping_method": "hybrid", "shortlist": 2}
    server = bench.site.serve(min_devices=2, **trials)
    devices = [bench.site.device(name, count) for name, count in (("attic", 10), ("cellar", 7))]
    until_s = time.monotonic() + LIMIT_S
    while "trials" not in server.said and time.monotonic() < until_s:
        time.sleep(0.02)
    assert server.again()
    assert devices[0].again()
    real = bench.site.ends(server, *devices)
    method = '{ strategy = "mas", groups = 2, method = "hybrid", shortlist = 2 }'
    bench.run(bench.experiment(f"[methods.tried]\ngrouping = {method}\n"))
    assert bench.models("tried") == real
    report = bench.site.report()
    assert {row["phase"] for row in report["rounds"]} == {"merge", "trials", "split"}
    assert report["split"]["choice"]["known"] >= 2
    assert bench.summaries()["tried", 7]["rounds"] == len(report["rounds"])


def test_links_that_are_lost_and_slow_boards_change_the_times_and_nothing_else(bench):
    bench.run(bench.experiment(MAS))
    fleet = "[fleet.board]\nspeed = 0.01\nlatency_s = 0.2\nup_bytes_per_s = 20000\ndown_bytes_per_s = 40000\n"
    fleet += "drop_rate = 0.7\naway_s = 30\n"
    (bench.root / "slow").mkdir()
    shutil.copy(bench.root / "out" / "costs.json", bench.root / "slow")
    said = bench.run(bench.experiment(MAS, fleet), "slow")
    assert "dropped" not in said  # what is announced and acknowledged twice is no fault of anybody
    assert bench.models("MAS-2", "slow") == bench.models("MAS-2")
    fast, slow = bench.summaries()["MAS-2", 7], bench.summaries("slow")["MAS-2", 7]
    assert slow["simulated_s"] > fast["simulated_s"] + 30
    assert slow["test_loss"] == fast["test_loss"]
    shutil.rmtree(bench.root / "slow" / "runs")
    shutil.rmtree(bench.root / "slow" / "courses")
    bench.run(bench.experiment(MAS, fleet), "slow")
    again = bench.summaries("slow")["MAS-2", 7]
    assert {**again, "compute_s": 0, "critical_path_s": 0} == {**slow, "compute_s": 0, "critical_path_s": 0}


SLOW = "[fleet.boards.cellar]\nspeed = 1e-4\n"


def results_of(bench, method):
    """The updates of a method's rounds, by round and device."""
    journal = FederationJournal(bench.root / "out" / "runs" / method / "7" / "server" / "federation.sqlite3")
    rows = [row for row in journal.rounds() if row.round.work == "train"]
    return {row.round.number: journal.results(row.round.number) for row in rows}


@pytest.mark.long
def test_a_slow_board_is_waited_for_or_not_and_its_partial_work_counts(bench):
    methods = (
        '[methods.late]\nstrategy = "all_in_one"\nrounds.deadline_s = 20\n\n'
        '[methods.buffered]\nstrategy = "all_in_one"\nrounds.mode = "buffered"\nrounds.buffer_size = 1\n'
        "rounds.max_staleness = 2\n"
    )
    bench.run(bench.experiment(methods, fleet=SLOW))
    late = results_of(bench, "late")
    for results in late.values():
        assert results["attic"].examples["depth"] == 10
        assert 0 < results["cellar"].examples["depth"] < 7
    buffered = results_of(bench, "buffered")
    assert buffered[0].keys() == buffered[1].keys() == {"attic"}
    assert {update.round for update in buffered[2].values()} <= {0, 2}


METHODS = (
    MAS
    + '[methods.single]\nstrategy = "one_by_one"\n[methods.all]\nstrategy = "all_in_one"\n'
    + '[methods."TAG-2"]\nstrategy = "tag"\ngroups = 2\nprobe_rounds = 3\n'
    + '[methods.every]\nstrategy = "exhaustive"\ngroups = 2\n'
    + '[methods.constant]\nbaseline = "constant"\nstrategy = "all_in_one"\n'
    + '[methods."HOA-2"]\nstrategy = "hoa"\ngroups = 2\n'
)


def test_every_strategy_runs_and_what_several_share_is_done_once(bench):
    bench.run(bench.experiment(METHODS))
    found = bench.summaries()
    assert [len(found[name, 7]["groups"]) for name in ("single", "all", "MAS-2")] == [3, 1, 2]
    assert [found[name, 7]["rounds"] for name in ("single", "all", "MAS-2")] == [9, 3, 4]
    assert all("total" in each["test_loss"] for each in found.values())
    assert found["every", 7]["rounds"] == 2 + 7 + 2
    assert found["every", 7]["last_split"]["origin"] == found["MAS-2", 7]["last_split"]["origin"]
    assert found["constant", 7]["baseline"] == "constant"
    assert found["constant", 7]["test_loss"] != found["all", 7]["test_loss"]
    # HOA trains every task alone as one-by-one does: that work was taken over, and is charged all the same.
    assert found["HOA-2", 7]["rounds"] == 18 + 3 * len(found["HOA-2", 7]["groups"])
    assert found["HOA-2", 7]["compute_s"] > found["single", 7]["compute_s"]
    alone = bench.run(bench.experiment('[methods."HOA-2"]\nstrategy = "hoa"\ngroups = 2\n'), "alone")
    assert "HOA-2" in alone
    assert bench.models("HOA-2", "alone") == bench.models("HOA-2")
    again = bench.summaries("alone")["HOA-2", 7]
    assert [again[key] for key in ("test_loss", "test_metric")] == [
        found["HOA-2", 7][key] for key in ("test_loss", "test_metric")
    ]


def test_an_experiment_that_was_killed_goes_on_to_the_same_end(bench):
    path = bench.experiment(METHODS)
    bench.run(path)
    (bench.root / "cut").mkdir()
    shutil.copy(bench.root / "out" / "costs.json", bench.root / "cut")
    for pause_s, number, code in (
        (2.5, signal.SIGKILL, -9),
        (3.5, signal.SIGTERM, 130),
        (4.5, signal.SIGKILL, -9),
        (3.0, signal.SIGINT, 130),
    ):
        process = bench.start(path, "cut")
        time.sleep(pause_s)
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode in {code, 0}
    bench.run(path, "cut")
    assert {key: each["test_loss"] for key, each in bench.summaries("cut").items()} == {
        key: each["test_loss"] for key, each in bench.summaries().items()
    }
    assert bench.models("MAS-2", "cut") == bench.models("MAS-2")


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="worker processes are found by /proc")
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence_and_the_same_command_goes_on(bench):
    path = bench.experiment(MAS)
    process, until = bench.start(path, "out"), time.monotonic() + LIMIT_S
    while not (bench.root / "out" / "runs").exists():  # the first round is about to begin
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    (worker,) = workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 5
    assert "error: a worker process was ended from outside" in said
    assert "Traceback" not in said
    bench.run(path)
    assert bench.models("MAS-2")


def workers(parent):
    """The process ids of a simulation's worker processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            started_by = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if started_by == parent and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


TASKS_OF = '[tasks_of]\nattic = ["depth"]\ncellar = ["normals", "segmentation"]\n'
APART = TASKS_OF + (
    '[methods.fedbone]\nstrategy = "fedbone"\ngeneral = "device"\n'
    '[methods.mean]\nstrategy = "fedbone"\naggregation = "mean"\ngeneral = "device"\n'
    '[methods.averaged]\nstrategy = "all_in_one"\n[methods.everything]\nstrategy = "all_in_one"\ntasks_of = {}\n'
    '[methods.local]\nstrategy = "all_in_one"\nbaseline = "local_training"\n'
)


def test_devices_with_tasks_of_their_own_together_and_each_for_itself(bench):
    bench.run(bench.experiment(APART))
    found = {method: each for (method, _), each in bench.summaries().items()}
    assert bench.models("mean") == bench.models("averaged")
    assert bench.models("fedbone") != bench.models("averaged") != bench.models("everything")
    assert all(set(each["test_loss"]) == {"depth", "normals", "segmentation", "total"} for each in found.values())

    local, rounds = found["local"], 3
    assert (local["rounds"], local["bytes_up"], local["bytes_down"]) == (rounds, 0, 0)
    assert 0 < local["critical_path_s"] < local["compute_s"]
    assert 0 < local["simulated_s"] < found["averaged"]["simulated_s"] + 1
    report = msgspec.json.decode((bench.root / "out" / "runs" / "local" / "7" / "report.json").read_bytes())
    assert [each["clients"] for each in report["rounds"]] == [["attic", "cellar"]] * rounds

    one = '[methods.attic]\nstrategy = "all_in_one"\n[tasks_of]\nattic = ["depth"]\n'
    bench.run(bench.experiment(one), "one", "--devices", "attic")
    alone = bench.summaries("one")["attic", 7]
    assert alone["test_loss"] == {"depth": local["test_loss"]["depth"]}


@pytest.mark.parametrize(
    ("methods", "fleet", "says"),
    [
        ("[methods.x]\nstrategy = 'magic'\n", "", "methods.x"),
        ("[methods.x]\nport = 3\n", "", "a simulation decides this itself"),
        (MAS, "[fleet.boards.attic]\nwings = 2\n", "wings"),
        ("[methods.x]\nstrategy = 'fixed'\n", "", "fixed_groups"),
        ("[methods.x]\nalone = true\n", "", "methods.x: baseline: a device by itself"),
        (MAS, '[tasks_of]\nattic = ["wings"]\n', "no labels of 'wings'; it has depth"),
        (
            "[methods.x]\ngrouping.strategy = 'fedbone'\n",
            "",
            "methods.x: split_learning.encoder: the model has no stem",
        ),
    ],
)
def test_a_wrong_experiment_is_refused_with_its_place(bench, methods, fleet, says):
    process = bench.start(bench.experiment(methods, fleet), "out")
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert says in said


def test_boards_that_stay_away_end_the_run_with_a_reason(bench):
    path = bench.experiment(MAS, "[fleet.board]\ndrop_rate = 1.0\naway_s = 1e8\n")
    process = bench.start(path, "out")
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 5
    assert "no round has closed" in said
