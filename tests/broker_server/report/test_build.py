import msgspec
import numpy as np
import pytest
import samples

from broker_server.report import build as reports
from broker_server.rounds.journal import FederationJournal
from broker_server.strategies.planner import Phase
from edge_runtime.wire.tensors import pack, unpack

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(world):
    world = world()
    world.device("x", examples=10).start()
    world.device("y", examples=30).start()
    world.until_finished()
    return world


def test_report_has_what_the_federation_did(finished, tmp_path):
    report = reports.build(finished.journal)
    reports.write(tmp_path / "out", report, reports.models(finished.journal, finished.blobs))
    data = msgspec.json.decode((tmp_path / "out" / "report.json").read_bytes())
    assert set(data) == {
        "strategy", "tasks", "seed", "versions", "rounds", "energy", "affinity", "split", "ort_training",
        "test_loss", "wall_s", "evaluations", "test_metrics", "spread", "settings",
    }  # fmt: skip
    assert (data["strategy"], data["tasks"], data["seed"]) == ("mas", ["a", "b", "c"], 0)
    assert [(r["phase"], r["group"]) for r in data["rounds"]] == [
        ("merge", "a+b+c"), ("merge", "a+b+c"), ("split", "a+b"), ("split", "a+b"), ("split", "c"), ("split", "c"),
    ]  # fmt: skip
    first = data["rounds"][0]
    assert first["clients"] == ["x", "y"]
    assert first["train_loss"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert first["val_loss"] == {"a": 1.5, "b": 1.5, "c": 1.5}
    assert first["bytes_up"] > 0
    assert first["bytes_down"] == 200
    assert (first["update_schemes"], first["update_ratio"]) == ({"fp32": 2}, 1.0)
    assert first["peak_rss_bytes"] == 1000
    assert first["energy"]["energy_j"] is None
    assert (first["energy"]["plans"], first["energy"]["partial"]) == (2, False)
    assert first["energy_by_device"] == {"x": None, "y": None}
    assert data["affinity"]["tasks"] == ["a", "b", "c"]
    assert data["affinity"]["counts"] == [[6] * 3] * 3
    assert data["split"]["groups"] == [["a", "b"], ["c"]]
    assert data["test_loss"] == {s: {"a": 2.0, "b": 2.0, "c": 2.0, "total": 6.0} for s in ("before", "merged", "end")}
    assert [(e["round"], e["phase"], e["group"]) for e in data["evaluations"]] == [
        (0, "before", "a+b+c"), (3, "merged", "a+b+c"), (8, "end", "a+b"), (9, "end", "c"),
    ]  # fmt: skip
    assert data["evaluations"][2]["loss"] == {"a": 2.0, "b": 2.0}
    assert data["test_metrics"] == {"before": None, "merged": None, "end": None}
    assert data["wall_s"] >= 0
    assert reports.read(tmp_path / "out" / "report.json") == report
    table = finished.bundle.group(("a", "b"), finished.bundle.weights).table
    unpack(table, (tmp_path / "out" / "models" / "a+b.safetensors").read_bytes())


def test_report_has_metrics_as_means_over_devices_by_examples(world):
    world = world()
    world.device("x", examples=10, metrics={"a": 0.25, "b": 20.0}).start()
    world.device("y", examples=30, metrics={"a": 0.5}).start()
    world.until_finished()
    report = reports.build(world.journal)
    expected = {
        "a": reports.MetricMean(name="rmse", value=0.4375),
        "b": reports.MetricMean(name="angular_error_deg", value=20.0),
    }
    assert report.test_metrics == dict.fromkeys(reports.STAGES, expected)
    assert [each.metrics for each in report.evaluations] == [expected, expected, expected, {}]
    assert msgspec.json.decode(msgspec.json.encode(report), type=reports.Report) == report


def test_report_takes_a_task_s_metric_from_where_its_loss_is_least(tmp_path):
    groups = (("a", "b"), ("a", "c"), ("a", "d"))
    phase = Phase(name="end", work="evaluate", groups=groups, start=None, data_split="test")
    journal = FederationJournal(tmp_path / "s.sqlite3")
    journal.set_fact("metrics", '{"a": "rmse", "b": null}')
    journal.begin_phase(phase, 0, {})
    for number, (loss, rmse) in enumerate([(2.0, 0.25), (1.0, 0.75), (1.5, 0.5)]):
        about = phase.round_at(number, 0)
        journal.open_round(about, ("x",), 1)
        found = {"loss": {"a": loss}, "metrics": {"a": rmse, "b": 0.5}, "examples": {"a": 3, "b": 3}}
        journal.add_result(number, "x", samples.evaluation(number, group=about.group, **found))
        journal.close_round(about, None, bytes_up=0, bytes_down=0)
    report = reports.build(journal)
    assert [each.metrics["a"].value for each in report.evaluations] == [0.25, 0.75, 0.5]
    assert report.test_loss["end"] == {"a": 1.0}
    assert report.test_metrics["end"] == {"a": reports.MetricMean(name="rmse", value=0.75)}


def test_report_of_a_journal_that_knows_no_metrics(world):
    world = world()
    world.device("x", metrics={"a": 0.1}).start()
    world.device("y").start()
    world.until_finished()
    world.journal.set_fact("metrics", "{}")
    assert not any(reports.build(world.journal).test_metrics.values())


def test_metrics_of_a_foreign_task_do_not_count(world):
    world = world()
    x = world.device("x", metrics={"a": 0.1})
    x.evaluate = lambda plan, original=x.evaluate: msgspec.structs.replace(original(plan), metrics={"z": 0.1})
    x.start()
    world.device("y", metrics={"a": 0.3}).start()
    world.until(lambda: any("'z'" in ack.detail for ack in x.acks))


@pytest.mark.slow
def test_report_of_devices_that_count_with_their_own_tasks(world):
    world = world()
    loss = {"x": 1.0, "y": 4.0}
    for name, examples in (("x", 10), ("y", 30)):
        device = world.device(name, examples=examples, metrics={"a": loss[name] / 8})
        found = device.evaluate
        device.evaluate = lambda plan, name=name, found=found: msgspec.structs.replace(
            found(plan), loss=dict.fromkeys(plan.tasks, loss[name])
        )
        device.start()
    world.until_finished()
    assert reports.build(world.journal).test_loss["end"] == {"a": 3.25, "b": 3.25, "c": 3.25, "total": 9.75}
    counted = reports.build(world.journal, {"x": ("a",), "y": ("b", "c")})
    assert counted.test_loss["end"] == {"a": 1.0, "b": 4.0, "c": 4.0, "total": 9.0}
    assert reports.build(world.journal, {"x": ("a",)}).test_loss["end"] == {
        "a": 3.25,
        "b": 4.0,
        "c": 4.0,
        "total": 11.25,
    }
    assert counted.test_metrics["end"]["a"].value == 0.125
    assert counted.rounds == reports.build(world.journal).rounds


def test_report_says_how_small_updates_were(world):
    world = world(update_scheme="int8")
    world.device("x").start()
    world.device("y").start()
    world.until_finished()
    table, weights = world.bundle.table, world.journal.weights()["merge", "a+b+c"]
    row = reports.build(world.journal).rounds[0]
    assert row.update_schemes == {"int8": 2}
    update = world.journal.results(1)["x"].weights
    assert row.update_ratio == update.size_bytes / weights.size_bytes
    assert weights.size_bytes == len(pack(table, np.zeros(table.size, np.float32)))


def test_report_of_a_federation_that_is_still_going_on(world):
    world = world()
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: world.loop.round and world.loop.round.number == 1)
    report = reports.build(world.journal)
    assert report.test_loss["before"]["total"] == 6.0
    assert report.test_loss["end"] is None
    assert report.split is None
    assert report.affinity is None
    assert reports.models(world.journal, world.blobs).keys() == {"a+b+c"}


def test_report_says_what_was_spent_and_by_whom(world, make_energy):
    world = world()
    x, _ = world.device("x", energy=make_energy(joules=10.0)), world.device("y")
    x.spent = make_energy(joules=12.0, phases={"train": 10.0, "upload": 2.0})
    for device in world.link.devices.values():
        device.start()
    world.until_finished()
    report = reports.build(world.journal)
    trained = report.rounds[0]
    assert trained.energy_by_device == {"x": x.spent, "y": None}
    assert (trained.energy.energy_j, trained.energy.measured, trained.energy.plans) == (12.0, 1, 2)
    assert trained.energy.partial
    rounds = len(report.rounds)
    measuring = 2 + len(report.split.groups)
    assert report.energy.total.energy_j == 12.0 * rounds + 10.0 * measuring
    assert report.energy.total.plans == 2 * (rounds + measuring)
    assert sorted(report.energy.groups) == ["a+b", "a+b+c", "c"]
    assert report.energy.groups["c"].energy_j == 2 * 12.0 + 10.0
    assert report.energy.groups["c"].phases["upload"].energy_j == 4.0
    assert reports.energy_report([]).total.energy_j is None


def test_report_of_nothing(tmp_path):
    journal = FederationJournal(tmp_path / "s.sqlite3")
    with pytest.raises(reports.ReportImpossible):
        reports.build(journal)
    with pytest.raises(reports.ReportImpossible):
        reports.read(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(reports.ReportImpossible):
        reports.read(tmp_path / "report.json")
