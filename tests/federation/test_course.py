"""A federation from its beginning to its end, undisturbed."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from edge_runtime.wire import bundle_folder
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.workstation
Number = (int, float)


def losses(values, *names):
    assert sorted(values) == sorted(names)
    assert all(isinstance(value, float) and np.isfinite(value) for value in values.values())


def check_report(report, tasks, clients):
    """Every key of report.json and its type."""
    assert list(report) == [
        "strategy", "tasks", "seed", "versions", "rounds", "energy", "affinity", "split", "ort_training",
        "test_loss", "wall_s", "evaluations", "test_metrics", "spread", "settings",
    ]  # fmt: skip
    assert (report["strategy"], report["tasks"], report["seed"]) == ("mas", list(tasks), 7)
    assert {"python", "mas-edge", "numpy", "torch"} <= set(report["versions"])
    assert all(isinstance(version, str) and version for version in report["versions"].values())
    for row in report["rounds"]:
        assert list(row) == [
            "round", "phase", "group", "clients", "train_loss", "val_loss", "wall_s", "bytes_up", "bytes_down",
            "update_schemes", "update_ratio", "peak_rss_bytes", "energy", "energy_by_device", "linear",
        ]  # fmt: skip
        assert isinstance(row["round"], int)
        assert row["phase"] in {"merge", "split"}
        assert row["clients"] == clients
        losses(row["train_loss"], *row["group"].split("+"))
        losses(row["val_loss"], *row["group"].split("+"))
        assert isinstance(row["wall_s"], float)
        assert row["wall_s"] > 0
        assert isinstance(row["bytes_up"], int)
        assert row["bytes_up"] > 0
        assert (row["update_schemes"], row["update_ratio"]) == ({"fp32": len(clients)}, 1.0)
        assert isinstance(row["bytes_down"], int)
        assert row["bytes_down"] > 0 or row["round"] == 1  # the first weights were here to be measured
        assert row["peak_rss_bytes"] is None or row["peak_rss_bytes"] > 2**20
        assert row["energy"]["energy_j"] is None
        assert sorted(row["energy_by_device"]) == clients
        for energy in row["energy_by_device"].values():  # what it was spent on is known, if not how much
            assert (energy["source"], energy["energy_j"]) == (None, None)
            assert {"download", "train"} <= set(energy["phases"])
            # The first round of training is probed, and what that took is told.
            assert (energy["phases"].get("probe", {"seconds": 0})["seconds"] > 0) == (row["round"] == 1)
    affinity, split = report["affinity"], report["split"]
    assert list(affinity) == ["tasks", "values", "counts"]
    assert affinity["tasks"] == list(tasks)
    assert np.array(affinity["values"], float).shape == np.array(affinity["counts"]).shape == (3, 3)
    assert np.isfinite(np.array(affinity["values"], float)).all()
    assert list(split) == ["groups", "score", "mode", "gate", "choice"]
    assert sorted(task for group in split["groups"] for task in group) == list(tasks)
    assert isinstance(split["score"], Number)
    assert split["mode"] == "exactly"
    assert list(report["test_loss"]) == ["before", "merged", "end"]
    for stage in report["test_loss"].values():
        losses(stage, *tasks, "total")
        assert stage["total"] == pytest.approx(sum(stage[task] for task in tasks))
    assert isinstance(report["wall_s"], float)
    for stage in report["test_metrics"].values():
        assert {task: mean["name"] for task, mean in stage.items()} == {
            "depth": "rmse",
            "normals": "angular_error_deg",
            "segmentation": "miou",
        }
        losses({task: mean["value"] for task, mean in stage.items()}, *tasks)
    assert {each["phase"] for each in report["evaluations"]} == {"before", "merged", "end"}


def test_federation_merges_measures_and_splits(site):
    server = site.serve(min_devices=3)
    devices = [site.device(name, count) for name, count in (("attic", 10), ("cellar", 7), ("kitchen", 5))]
    models = site.ends(server, *devices)
    report = site.report()
    check_report(report, site.tasks, ["attic", "cellar", "kitchen"])
    groups = report["split"]["groups"]
    assert len(groups) == 2
    assert [(row["phase"], row["group"]) for row in report["rounds"]] == [
        ("merge", "+".join(site.tasks)),
        ("merge", "+".join(site.tasks)),
        *(("split", "+".join(group)) for group in groups),
    ]
    # The first round probed at every batch: 3, 2 and 2 of them.
    assert report["affinity"]["counts"] == [[7] * 3] * 3
    whole = bundle_folder.read_folder(site.bundle)
    for name, data in models.items():
        assert np.isfinite(unpack(whole.group(name.split("+"), whole.weights).table, data)).all()
    assert (site.state / "report" / "report.html").stat().st_size > 1000
    assert all("Traceback" not in process.said for process in site.processes)


def test_federation_goes_on_where_devices_lack_the_labels_of_a_task(site):
    """Two of three devices have no normals: the third alone trains that head, and its group where it is split off."""
    for name in ("attic", "cellar"):
        folder = site.data(name)
        for split in ("train", "val", "test"):
            (folder / split / "normals.npy").unlink()
    server = site.serve(min_devices=3, groups=3)
    devices = [
        site.run(
            f"device-{name}", "edge_runtime", "run", "--config",
            site.enrol(name, data=str(site.root / "data" / name if name != "kitchen" else site.data(name))),
        )
        for name in ("attic", "cellar", "kitchen")
    ]  # fmt: skip
    site.ends(server, *devices)
    rounds = {(row["phase"], row["group"]): row for row in site.report()["rounds"]}
    merged = rounds["merge", "+".join(site.tasks)]
    assert merged["clients"] == ["attic", "cellar", "kitchen"]
    losses(merged["train_loss"], *site.tasks)
    assert rounds["split", "normals"]["clients"] == ["kitchen"]
    assert rounds["split", "depth"]["clients"] == ["attic", "cellar", "kitchen"]
    counts = site.report()["affinity"]["counts"]
    assert counts == [[9, 3, 9], [3, 3, 3], [9, 3, 9]]  # three batches on each device that has both
    assert all("Traceback" not in process.said for process in site.processes)


def test_federation_of_one_is_local_training_bit_for_bit(site):
    server = site.serve(min_devices=1, groups=1, merged_rounds=4, probe_rounds=2)
    device = site.device("alone")
    (merged,) = site.ends(server, device).values()
    assert site.report()["split"] is None
    local = site.root / "local.safetensors"
    command = [sys.executable, "-m", "edge_runtime", "train", "--bundle", site.bundle, "--data", site.data("alone")]
    settings = ["--epochs", 4, "--batch", 4, "--lr", 0.05, "--seed", 7, "--threads", 1, "--out", local]
    subprocess.run([*map(str, command), *map(str, settings)], check=True, stdout=subprocess.DEVNULL)
    assert local.read_bytes() == merged
    assert merged != (site.bundle / bundle_folder.WEIGHTS).read_bytes()


def test_federation_does_not_depend_on_who_is_first(make_site):
    counts = {"a": 10, "b": 8, "c": 3}
    first = make_site("first")
    server = first.serve(min_devices=3, quorum=3)
    expected = first.ends(server, *(first.device(name, count) for name, count in counts.items()))
    second = make_site("second")
    server = second.serve(min_devices=3, quorum=3)
    devices = {name: second.device(name, counts[name]) for name in "cba"}
    until_s, turn = time.monotonic() + 60, 0
    while server.process.poll() is None and time.monotonic() < until_s:
        held = devices["abc"[turn % 3]]  # each in turn is held up for a while, so it is the last
        turn += 1
        if held.process.poll() is None:
            held.signal(signal.SIGSTOP)
            time.sleep(0.4)
            held.signal(signal.SIGCONT)
        time.sleep(0.1)
    assert turn > 2
    assert second.ends(server, *devices.values()) == expected
