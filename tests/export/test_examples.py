"""The examples of docs/examples, from their file to a deployed model, by the commands that a user types."""

import importlib.util
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edge_runtime.__main__ import main as edge_runtime  # noqa: E402
from edge_runtime.datasets.dataset import Dataset, Description  # noqa: E402
from edge_runtime.datasets.dataset_writer import write_description  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire.graph_names import input_of  # noqa: E402
from edge_runtime.wire.tensors import unpack  # noqa: E402
from export.__main__ import main as export  # noqa: E402
from export.model_file import build_model  # noqa: E402

pytestmark = pytest.mark.workstation
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def write_data(folder, model, samples=6):
    """A data set of random inputs and of the example's kinds of labels."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        inputs = {input_of(name): example for name, example in model.inputs.items()}
        for name, example in {**inputs, **model.example_targets}.items():
            shape = (samples, *example.shape[1:])
            integers = example.dtype == torch.int64
            drawn = random.integers(0, int(example.max()) + 1, shape) if integers else random.random(shape, np.float32)
            np.save(folder / split / f"{name}.npy", drawn)
    write_description(folder, Description(inputs=tuple(sorted(inputs))))
    return folder


# The example, and the share of its numbers that are trained and sent.
CASES = {
    "unet.py:build": (1.0, 1.0),
    "frozen_backbone.py:build": (0.5, 0.7),
    "frozen_backbone.py:build_tuned": (0.8, 0.95),
    "lora_vit.py:build": (0.02, 0.1),
    "activity_lstm.py:build": (1.0, 1.0),
    "keywords.py:build": (1.0, 1.0),
    "air_quality.py:build": (1.0, 1.0),
    "table_mmoe.py:build": (1.0, 1.0),
}


ELSEWHERE = {"unet.py:build"}
"""tests/test_readme.py trains it."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.long if c in ELSEWHERE else ()) for c in CASES])
def test_example_is_compiled_trained_and_deployed(case, tmp_path, capsys):
    source = f"{EXAMPLES}/{case}"
    bundle, trained, plain = tmp_path / "bundle", tmp_path / "trained.safetensors", tmp_path / "model.onnx"
    assert export(["compile", source, "--out", str(bundle)]) == 0
    data = write_data(tmp_path / "data", build_model(source, 0))
    capsys.readouterr()
    command = ["train", "--bundle", str(bundle), "--data", str(data), "--epochs", "2", "--batch", "3", "--lr", "0.02"]
    assert edge_runtime([*command, "--threads", "1", "--out", str(trained), "--json"]) == 0
    result = msgspec.json.decode(capsys.readouterr().out)
    first, last = (sum(epoch["train_loss"].values()) for epoch in result["epochs"])
    assert last < first
    assert export(["deploy", str(bundle), "--weights", str(trained), "--out", str(plain)]) == 0
    manifest = bundle_folder.read_folder(bundle)
    weights = unpack(manifest.table, trained.read_bytes())
    fixed = sum(part.table.size for part in manifest.fixed.values())
    least, most = CASES[case]
    assert least <= manifest.table.size / (manifest.table.size + fixed) <= most
    held = {tensor.name for tensor in onnx.load(plain).graph.initializer}
    assert held >= {t.name for t in manifest.tensors} | {t.name for p in manifest.fixed.values() for t in p.tensors}
    assert (weights != unpack(manifest.table, (bundle / bundle_folder.WEIGHTS).read_bytes())).any()
    found = tmp_path / "predictions.npz"
    assert (
        edge_runtime(["predict", "--model", str(plain), "--data", str(data), "--count", "2", "--out", str(found)]) == 0
    )
    with np.load(found) as arrays:
        assert set(manifest.inputs) <= set(arrays)
        assert {len(arrays[f"prediction.{task}"]) for task in manifest.task_names} == {2}


HEADER = (
    '"No","year","month","day","hour","PM2.5","PM10","SO2","NO2","CO","O3","TEMP","PRES","DEWP","RAIN","wd","WSPM",'
    '"station"'
)


def reading(i):
    """One hour at a station, where the air pressure never changes."""
    date = f"{i},2013,{1 + i // 720},1,{i % 24}"
    gases = f"{i % 50},{i % 70},{i % 9},{i % 30},{300 + i % 5},{i % 60}"
    return f'{date},{gases},{i % 20 - 5},1020,-{i % 3},0,"N",{i % 4},"A"'


def test_air_quality_is_prepared_from_a_station_s_file(tmp_path, capsys):
    rows = [reading(i) for i in range(720)]
    rows[100] = rows[100].replace(",300,", ",NA,")
    (tmp_path / "a.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    spec = importlib.util.spec_from_file_location("air_quality", EXAMPLES / "air_quality.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.prepare(tmp_path / "a.csv", tmp_path / "a")
    dataset = Dataset.open(tmp_path / "a")
    assert {name: array.shape[1:] for name, array in dataset.train.inputs.items()} == {
        "calendar": (4,),
        "readings": (11, 24),
    }
    assert dataset.tasks == ("co", "no2", "o3", "pm10", "pm2_5", "so2")
    whole = len(range(24, 504 - 6, 6))
    assert whole - 6 < len(dataset.train) < whole  # without those that lack a reading
    assert np.isfinite(np.asarray(dataset.train.inputs["readings"][:])).all()
    assert "train: " in capsys.readouterr().out
