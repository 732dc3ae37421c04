import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime.training.command import add_train_arguments
from edge_runtime.training.schedule import learning_rate
from edge_runtime.training.trainer import Trainer
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire.footprint import MICRO_BATCHES, Footprint, GraphFootprint
from edge_runtime.wire.tensors import unpack
from edge_runtime.wire.training import GradNormWeighting

ROOT = Path(__file__).parents[3]


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def train(tiny, *words, bundle=None, data=None):
    return command("train", "--bundle", bundle or tiny.folder, "--data", data or tiny.data, *words)


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sentence(done, code):
    """One sentence on the error output, nothing on the other, and the exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.mark.process
def test_train_prints_its_result_as_json(tiny, tmp_path):
    out = tmp_path / "weights.safetensors"
    found = result_of(
        train(
            tiny,
            *("--epochs", 2, "--batch", 4, "--lr", 0.02, "--weight-decay", 0.01, "--seed", 3, "--probe-every", 2),
            *("--json", "--out", out),
        )
    )
    assert found["tasks"] == ["depth", "normals", "segmentation"]
    assert found["examples"] == 10
    labels = np.load(tiny.data / "train" / "segmentation.npy")
    assert found["class_counts"] == {"segmentation": [0, *np.bincount(labels.ravel(), minlength=4)[1:]]}  # 0: no label
    assert [epoch["epoch"] for epoch in found["epochs"]] == [0, 1]
    assert found["epochs"][0]["lr"] == 0.02
    assert found["epochs"][1]["lr"] == pytest.approx(0.02 * 0.5**0.9)
    assert [epoch["affinity"]["count"] for epoch in found["epochs"]] == [2, 1]  # steps 0, 2 and 4 of 6
    for epoch in found["epochs"]:
        assert list(epoch["train_loss"]) == list(epoch["val_loss"]) == found["tasks"]
    expected = (tiny.reference["losses"][:3] * np.array([4, 4, 2])[:, None]).sum(axis=0) / 10
    np.testing.assert_allclose(list(found["epochs"][0]["train_loss"].values()), expected, rtol=1e-4)
    assert list(found["test_loss"]) == found["tasks"]
    assert found["metrics"] == {"depth": "rmse", "normals": "angular_error_deg", "segmentation": "miou"}
    for metrics in (*(epoch["val_metrics"] for epoch in found["epochs"]), found["test_metrics"]):
        assert list(metrics) == found["tasks"]
        assert 0 < metrics["segmentation"] < 1
    assert found["step_ms_median"] > 0
    assert found["peak_rss_bytes"] > 1e6
    assert unpack(tiny.table, out.read_bytes()).shape == tiny.weights.shape


@pytest.mark.process
def test_train_with_one_seed_writes_the_same_bytes(tiny, tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        done = train(tiny, "--seed", seed, "--out", path)
        assert done.returncode == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()


@pytest.mark.process
def test_train_that_is_killed_leaves_the_last_whole_epoch(tiny, tmp_path):
    out = tmp_path / "weights"
    words = ("--bundle", tiny.folder, "--data", tiny.data, "--epochs", 1000, "--out", out)
    with subprocess.Popen(
        [sys.executable, "-m", "edge_runtime", "train", *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("epoch 1")
        assert process.stdout.readline().startswith("epoch 2")
        process.kill()
    weights = unpack(tiny.table, out.read_bytes())
    assert np.isfinite(weights).all()
    assert (weights != tiny.weights).any()


@pytest.mark.process
def test_train_that_cannot_write_says_so_before_the_first_epoch(tiny, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "weights"):
        assert str(tmp_path) in sentence(train(tiny, "--out", out), 3)


@pytest.mark.process
def test_train_without_any_label_of_a_task_says_so(tiny, data_copy):
    path = data_copy / "train" / "depth.npy"
    nothing = np.full_like(np.load(path), np.nan)
    np.save(path, nothing)
    said = sentence(train(tiny, data=data_copy), 2)
    assert said == f"{path} is NaN throughout: leave depth out with --tasks"


@pytest.mark.process
def test_train_says_losses_to_people(tiny):
    done = train(tiny)
    assert done.returncode == 0
    assert done.stdout.startswith("epoch 1: train ")
    assert "depth" in done.stdout
    assert "MiB" in done.stdout


@pytest.mark.process
def test_train_of_some_tasks_goes_on_from_weights_it_wrote(tiny, tmp_path):
    out = tmp_path / "weights"
    first = result_of(train(tiny, "--tasks", "normals,depth", "--out", out, "--json"))
    assert first["tasks"] == ["depth", "normals"]
    again = result_of(train(tiny, "--tasks", "normals,depth", "--weights", out, "--json"))
    assert sum(again["epochs"][0]["train_loss"].values()) < sum(first["epochs"][0]["train_loss"].values())
    assert "tensor file" in sentence(train(tiny, "--weights", out, "--json"), 3)


@pytest.mark.process
def test_train_without_validation_and_test_images(tiny, data_copy):
    for split in ("val", "test"):
        for path in (data_copy / split).iterdir():
            path.unlink()
        (data_copy / split).rmdir()
    found = result_of(train(tiny, "--json", data=data_copy))
    assert found["epochs"][0]["val_loss"] is None
    assert found["test_loss"] is None
    assert found["test_metrics"] is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--epochs", 0), "--epochs: '0' is not a whole number, 1 to 1000"),
        (("--batch", 0), "--batch: '0' is not a whole number, 1 to 65536"),
        (("--threads", -1), "--threads: '-1' is not a whole number, 0 to 1024"),
        (("--lr", 0), "--lr: '0' is not a number, above 0 and at most 1000"),
        (("--lr", "nan"), "--lr: 'nan' is not a number"),
        (("--lr", "inf"), "--lr: 'inf' is not a number"),
        (("--momentum", 1), "--momentum: '1' is not a number"),
        (("--weight-decay", -1), "--weight-decay: '-1' is not a number"),
        (("--seed", -1), "--seed: '-1' is not a whole number"),
        (("--probe-every", -1), "--probe-every: '-1' is not a whole number"),
        (("--tasks", ","), "--tasks: ',' is not names"),
        (("--clip-norm", -1), "--clip-norm: '-1' is not a number"),
        (("--beta2", 1), "--beta2: '1' is not a number"),
        (("--task-weights", "depth=-1"), "--task-weights: 'depth=-1' is not a number for each task"),
    ],
)
def test_train_with_an_option_that_makes_no_sense(capsys, words, text):
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--bundle", "b", "--data", "d", *map(str, words)])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--tasks", "depth,edges"), "no task 'edges'"),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--weights", __file__), "not a tensor file"),
    ],
)
def test_train_with_something_the_bundle_does_not_have(tiny, words, text):
    assert text in sentence(train(tiny, *words), 3)


@pytest.mark.process
def test_train_of_the_same_task_twice_trains_it_once(tiny):
    assert result_of(train(tiny, "--tasks", "depth,depth", "--json"))["tasks"] == ["depth"]


@pytest.mark.process
def test_train_without_a_bundle_or_data(tiny, tmp_path):
    assert "is not a bundle" in sentence(train(tiny, bundle=tmp_path), 3)
    assert "is not a data set" in sentence(train(tiny, data=tmp_path), 3)


@pytest.mark.process
def test_train_with_an_altered_graph(tiny, bundle_copy):
    (bundle_copy / "graphs" / "encoder.0.forward.onnx").write_bytes(b"x")
    assert "encoder.0.forward.onnx is not the file that the manifest names" in sentence(
        train(tiny, bundle=bundle_copy), 3
    )


@pytest.mark.process
def test_train_with_a_bundle_of_a_newer_exporter(tiny, bundle_copy):
    path = bundle_copy / bundle_folder.MANIFEST
    newer = json.loads(path.read_text()) | {"format": 1000, "more": "than is known"}
    path.write_text(json.dumps(newer))
    said = sentence(train(tiny, bundle=bundle_copy), 3)
    assert "the bundle has format 1000" in said
    assert "update this software" in said


@pytest.mark.process
def test_train_with_a_graph_that_no_bundle_may_have(bundle_copy, tiny):
    path = bundle_folder.graph_path(bundle_copy, "encoder.0.forward")
    data = path.read_bytes().replace(b"Conv", b"Loop")
    path.write_bytes(data)
    file = manifests.File(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    changed = msgspec.structs.replace(tiny.manifest, graphs=tiny.manifest.graphs | {"encoder.0.forward": file})
    (bundle_copy / bundle_folder.MANIFEST).write_bytes(manifests.encode(changed))
    assert "graph encoder.0.forward is refused: operator 'Loop'" in sentence(train(tiny, bundle=bundle_copy), 3)


@pytest.mark.process
def test_train_with_options_is_what_the_trainer_gives(tiny, tmp_path):
    out = tmp_path / "weights.safetensors"
    plain = ("--epochs", 2, "--batch", 4, "--lr", 0.005, "--seed", 3, "--json", "--out", out)
    options = ("--optimizer", "adamw", "--clip-norm", 0.5, "--weighting", "gradnorm", "--probe-every", 3)
    found = result_of(train(tiny, *plain, *options, "--probe", "representation"))
    assert [epoch["affinity"]["count"] for epoch in found["epochs"]] == [1, 1]
    model, weighting_state, state = tiny.model(), None, np.zeros(2 * len(tiny.weights) + 1, np.float32)
    for epoch in range(2):
        settings = tiny.change(
            epochs=1, first_epoch=epoch, lr=learning_rate(0.005, epoch, 2), weight_decay=1e-4, optimizer="adamw",
            clip_norm=0.5, weighting=GradNormWeighting(),
        )  # fmt: skip
        weighting_state = (
            Trainer(model, tiny.dataset.train).train(settings, state, weighting_state=weighting_state).weighting_state
        )
    np.testing.assert_allclose(unpack(tiny.table, out.read_bytes()), model.weights, atol=1e-5)


@pytest.mark.process
def test_train_with_weights_that_do_not_go_together(tiny):
    assert "not one of the tasks depth, normals, segmentation" in sentence(train(tiny, "--task-weights", "edges=1"), 2)
    assert "leave them out" in sentence(train(tiny, "--weighting", "gradnorm", "--task-weights", "depth=1"), 2)


@pytest.fixture
def measured_bundle(tiny, bundle_copy):
    """The tiny bundle with a footprint: eight megabytes for a graph and for each of its samples."""
    taken = {
        file.digest: GraphFootprint(nodes=10, transient_bytes=tuple(2**23 * (1 + batch) for batch in MICRO_BATCHES))
        for file in tiny.manifest.graphs.values()
    }
    manifest = msgspec.structs.replace(tiny.manifest, footprint=Footprint(graphs=taken))
    (bundle_copy / bundle_folder.MANIFEST).write_bytes(manifests.encode(manifest))
    return bundle_copy


@pytest.mark.process
def test_train_keeps_to_a_memory_budget_or_says_what_would_do(tiny, measured_bundle):
    whole = result_of(train(tiny, "--batch", 8, "--memory-budget", "4GiB", "--json", bundle=measured_bundle))
    assert (whole["memory"]["micro_batch"], whole["memory"]["recomputed"]) == (8, 0)
    assert whole["memory"]["budget_bytes"] == 4 * 2**30
    # By more than resident memory varies by, and less than micro-batches save.
    tight = (whole["memory"]["predicted_peak_bytes"] - 20 * 2**20) / 0.9
    small = result_of(
        train(tiny, "--batch", 8, "--memory-budget", f"{tight / 2**10:.0f}KiB", "--json", bundle=measured_bundle)
    )
    assert small["memory"]["micro_batch"] < 8
    # A loss is a mean over labelled pixels, of which micro-batches have some more and some less.
    assert small["epochs"][0]["train_loss"] == pytest.approx(whole["epochs"][0]["train_loss"], rel=1e-2)
    refused = train(tiny, "--memory-budget", "20MiB", bundle=measured_bundle)
    assert re.match(r"20 MiB of memory are too little for this bundle: \d+ MiB would do \(", sentence(refused, 3))


@pytest.mark.process
def test_train_with_a_memory_budget_that_cannot_be_kept(tiny):
    assert sentence(train(tiny, "--memory-budget", "1GiB"), 3).endswith("compile it again")
    said = sentence(train(tiny, "--memory-budget", "1GiB", "--engine", "ort_training"), 2)
    assert said.startswith("--memory-budget: the engine ort_training does not plan its memory")
    assert train(tiny, "--memory-budget", "much").returncode == 2


@pytest.mark.process
def test_train_with_damaged_data(tiny, data_copy):
    path = data_copy / "train" / "depth.npy"
    path.write_bytes(path.read_bytes()[:-8])
    assert "depth.npy is truncated" in sentence(train(tiny, data=data_copy), 3)
    path.unlink()
    for split in ("val", "test"):
        (data_copy / split / "depth.npy").unlink()
    assert "no labels for depth" in sentence(train(tiny, data=data_copy), 3)


@pytest.mark.process
def test_train_that_diverges_says_so_and_keeps_no_weights_of_that_epoch(tiny, tmp_path):
    out = tmp_path / "weights"
    said = sentence(train(tiny, "--lr", 1000, "--epochs", 9, "--json", "--out", out), 2)
    assert "learning rate" in said
    assert out.exists() == (str(out) in said)
    if out.exists():  # of the epochs before
        assert np.isfinite(unpack(tiny.table, out.read_bytes())).all()


def predict(tiny, *words, model=None, data=None):
    return command("predict", "--model", model or tiny.deployed, "--data", data or tiny.data, *words)


@pytest.mark.process
def test_predict_writes_images_labels_and_predictions(tiny, tmp_path):
    out = tmp_path / "new" / "predictions.npz"
    done = predict(tiny, "--out", out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        names = {f"{kind}.{task}" for kind in ("label", "prediction") for task in tiny.manifest.task_names}
        assert set(found) == {"image"} | names
        assert found["image"].shape == (3, 3, 16, 16)
        for task in tiny.manifest.task_names:
            np.testing.assert_allclose(
                found[f"prediction.{task}"], tiny.reference[f"prediction.{task}"], atol=1e-5, rtol=1e-4
            )
        np.testing.assert_array_equal(found["label.segmentation"], tiny.dataset.test.labels["segmentation"])


@pytest.mark.process
def test_predict_of_fewer_images(tiny, tmp_path):
    out = tmp_path / "predictions.npz"
    assert predict(tiny, "--out", out, "--split", "train", "--count", 2).returncode == 0
    with np.load(out) as found:
        assert len(found["image"]) == len(found["prediction.depth"]) == 2


@pytest.mark.process
def test_predict_says_what_is_wrong(tiny, data_copy, tmp_path):
    out = tmp_path / "predictions.npz"
    assert "--count" in sentence(predict(tiny, "--out", out, "--count", 0), 2)
    assert "nowhere.onnx cannot be read" in sentence(predict(tiny, "--out", out, model=tmp_path / "nowhere.onnx"), 3)
    (tmp_path / "text.onnx").write_text("text")
    assert "text.onnx is not an ONNX graph" in sentence(predict(tiny, "--out", out, model=tmp_path / "text.onnx"), 3)
    hostile = Path(__file__).parents[2] / "attacks" / "wire" / "graphs" / "operator-python.onnx"
    assert "operator-python.onnx is refused" in sentence(predict(tiny, "--out", out, model=hostile), 3)
    assert "is not a data set" in sentence(predict(tiny, "--out", out, data=tmp_path), 3)
    graph = tiny.folder / "graphs" / "encoder.0.forward.onnx"
    assert "encoder.0.forward.onnx has an input" in sentence(predict(tiny, "--out", out, model=graph), 3)
    for path in (data_copy / "test").iterdir():
        path.unlink()
    (data_copy / "test").rmdir()
    assert "no test set" in sentence(predict(tiny, "--out", out, data=data_copy), 3)
