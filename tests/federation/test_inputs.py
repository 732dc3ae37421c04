"""A federation of devices whose data are signals and tokens, with the encoder on the devices and on the server.

One of the tasks has two predictions.
"""

import numpy as np
import pytest

pytest.importorskip("jwt")
pytest.importorskip("torch")
pytest.importorskip("onnx")

from edge_runtime.datasets.dataset import Description
from edge_runtime.datasets.dataset_writer import write_description
from export.__main__ import main as export

pytestmark = pytest.mark.workstation

MODEL = """
import torch
from torch import nn

from export.losses import cross_entropy
from export.model import MultiTaskModel


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.signal = nn.Embedding(20, 8), nn.Conv1d(2, 8, 3)

    def forward(self, signal, tokens):
        return torch.relu(self.signal(signal)).mean(-1) + self.words(tokens).mean(1)


class Spread(nn.Linear):
    def __init__(self):
        super().__init__(8, 2)

    def forward(self, z):
        mean, spread = super().forward(z).split(1, 1)
        return {"mean": mean, "spread": spread}


def likelihood(prediction, target):
    variance = 1 + prediction["spread"].square()
    return ((prediction["mean"] - target).square() / variance + variance.log()).mean()


def build():
    return MultiTaskModel(
        stem=Joined(),
        encoder=nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()),
        heads={"kind": nn.Linear(8, 3), "level": Spread()},
        losses={"kind": cross_entropy(), "level": likelihood},
        metrics={"level": ("mean", "rmse")},
        example_input={"signal": torch.rand(4, 2, 16), "tokens": torch.randint(0, 20, (4, 5))},
        example_targets={"kind": torch.randint(0, 3, (4,)), "level": torch.rand(4, 1)},
    )
"""


def data(folder, seed):
    """Twelve samples whose labels follow from the signal's mean and the first token."""
    random = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        signal, tokens = random.random((12, 2, 16), np.float32), random.integers(0, 20, (12, 5))
        arrays = {
            "signal": signal,
            "tokens": tokens.astype(np.uint16),
            "kind": tokens[:, 0] % 3,
            "level": signal.mean((1, 2))[:, None],
        }
        for name, array in arrays.items():
            np.save(folder / split / f"{name}.npy", array)
    write_description(folder, Description(inputs=("signal", "tokens")))
    return folder


@pytest.mark.parametrize("strategy", ["mas", "fedbone"])
def test_federation_of_signals_and_tokens(site, tmp_path, capsys, strategy):
    (tmp_path / "model.py").write_text(MODEL)
    site.bundle, site.tasks = tmp_path / "bundle", ("kind", "level")
    assert export(["compile", f"{tmp_path / 'model.py'}:build", "--out", str(site.bundle)]) == 0
    said = capsys.readouterr().err
    assert "split learning must be allowed by name (allow_reconstruction): how much of an input comes back" in said
    server = site.serve(strategy=strategy, epochs=5)
    devices = []
    for seed, name in enumerate(("ana", "ben")):
        config = site.enrol(name, data=str(data(tmp_path / name, seed)), split_learning=strategy == "fedbone")
        devices.append(site.run(f"device-{name}", "edge_runtime", "run", "--config", config))
    site.ends(server, *devices)
    report = site.report()
    assert [row["clients"] for row in report["rounds"]] == [["ana", "ben"]] * len(report["rounds"])
    assert set(report["test_loss"]["end"]) == {"kind", "level", "total"}
    assert set(report["test_metrics"]["end"]) == {"kind", "level"}
    first, *_, last = (row["train_loss"]["level"] for row in report["rounds"] if "level" in (row["train_loss"] or {}))
    assert last < first


def test_device_whose_data_lacks_an_input_says_which(site, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    site.bundle, site.tasks = tmp_path / "bundle", ("kind", "level")
    assert export(["compile", f"{tmp_path / 'model.py'}:build", "--out", str(site.bundle)]) == 0
    server = site.serve(min_devices=1, quorum=1)
    folder = data(tmp_path / "ana", 0)
    write_description(folder, Description(inputs=("signal",)))
    device = site.run("device-ana", "edge_runtime", "run", "--config", site.enrol("ana", data=str(folder)))
    site.until(device, "the bundle has the input tokens, the data set has signal: write tokens.npy, and name it in")
    device.kill()
    server.kill()
