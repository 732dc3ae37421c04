"""Heads that give several predictions, as boxes and scores: from the model to what is deployed."""

import json
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_runtime.__main__ import main as device  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire.labels import LabelContract  # noqa: E402
from export.__main__ import main as export  # noqa: E402
from export.compile import compile_model  # noqa: E402
from export.errors import ModelInvalid  # noqa: E402
from export.labels import label_contract  # noqa: E402
from export.mean_loss import compares_samples, grows_with_batch  # noqa: E402
from export.model_file import build_model  # noqa: E402
from export.parity.check import TOLERANCE, check_parity, relative_errors  # noqa: E402
from export.prediction import by_name, outputs_of, shapes_of  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.workstation]

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

from export.model import MultiTaskModel


class Encoder(nn.Linear):
    def __init__(self):
        super().__init__(5, 8)

    def forward(self, readings):
        return torch.tanh(super().forward(readings))


class Boxes(nn.Linear):
    def __init__(self):
        super().__init__(8, 7)

    def forward(self, z):
        found = super().forward(z)
        return {"box": found[:, :4], "scores": found[:, 4:]}


def detection(prediction, target):
    kind = F.cross_entropy(prediction["scores"], target[:, 4].long())
    return F.smooth_l1_loss(prediction["box"], target[:, :4]) + kind


class Gaussian(nn.Linear):
    def __init__(self):
        super().__init__(8, 2)

    def forward(self, z):
        return tuple(super().forward(z).split(1, 1))


def likelihood(prediction, target):
    mean, log_variance = prediction
    return ((mean - target).square() * torch.exp(-log_variance) + log_variance).mean()


def build():
    boxes = torch.cat([torch.rand(4, 4), torch.tensor([[0.0], [2.0], [1.0], [0.0]])], 1)
    return MultiTaskModel(
        encoder=Encoder(),
        heads={"level": Gaussian(), "object": Boxes()},
        losses={"level": likelihood, "object": detection},
        metrics={"level": ("0", "rmse")},
        example_input={"readings": torch.rand(4, 5)},
        example_targets={"level": torch.rand(4, 1), "object": boxes},
    )
"""


def samples(folder, count):
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        readings = random.random((count, 5), np.float32)
        boxes = np.hstack([readings[:, :4], (3 * readings[:, 4:]).astype(np.int64).astype(np.float32)])
        arrays = {"readings": readings, "level": readings[:, :1], "object": boxes}
        for name, array in arrays.items():
            np.save(folder / split / f"{name}.npy", array)
    (folder / "dataset.json").write_text('{"inputs": ["readings"]}')
    return folder


def test_several_predictions_are_trained_measured_predicted_and_deployed(tmp_path, capsys):
    (tmp_path / "model.py").write_text(MODEL)
    source, bundle = f"{tmp_path / 'model.py'}:build", tmp_path / "bundle"
    assert export(["compile", source, "--out", str(bundle)]) == 0
    tasks = {task.name: task for task in bundle_folder.read_folder(bundle).tasks}
    assert {name: array.shape for name, array in tasks["object"].predictions.items()} == {"box": (4,), "scores": (3,)}
    assert (tasks["level"].metric, tasks["level"].measured, tasks["object"].metric) == ("rmse", "0", None)

    data, weights = samples(tmp_path / "data", 12), tmp_path / "weights"
    common = ["--bundle", str(bundle), "--data", str(data)]
    capsys.readouterr()
    options = ["--epochs", "30", "--batch", "12", "--lr", "0.1", "--out", str(weights), "--json"]
    assert device(["train", *common, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_metrics"].keys() == {"level"}
    losses = [epoch["train_loss"]["object"] for epoch in found["epochs"]]
    assert losses[-1] < 0.9 * losses[0]

    plain, out = tmp_path / "plain.onnx", tmp_path / "found.npz"
    assert export(["deploy", str(bundle), "--out", str(plain)]) == 0
    assert device(["predict", "--model", str(plain), "--data", str(data), "--count", "12", "--out", str(out)]) == 0
    arrays = np.load(out)
    own = {f"prediction.{name}" for name in ("level.0", "level.1", "object.box", "object.scores")}
    assert set(arrays.files) == own | {"readings", "label.level", "label.object"}
    model = build_model(source, 0)
    with torch.no_grad():
        z = model.encoder(readings=torch.from_numpy(np.load(data / "test" / "readings.npy")))
        expected = {task: by_name(model.heads[task](z)) for task in model.tasks}
    for task, predictions in expected.items():
        for name, value in predictions.items():
            np.testing.assert_allclose(arrays[f"prediction.{task}.{name}"], value, atol=1e-5)


class Both(NamedTuple):
    mean: Tensor
    spread: Tensor


ONE = torch.rand(3, 2)


def test_predictions_have_names_of_keys_fields_or_places():
    assert outputs_of(ONE).keys() == {"prediction"}
    assert list(by_name({"mean": ONE, "spread": ONE})) == list(by_name(Both(ONE, ONE))) == ["mean", "spread"]
    assert list(outputs_of((ONE, ONE))) == ["prediction.0", "prediction.1"]
    assert shapes_of(Both(ONE, ONE[:, 0])) == "mean (3, 2), spread (3,)"


def likelihood(prediction, target):
    return ((prediction.mean - target).square() / (1 + prediction.spread.square())).mean()


def mean_alone(prediction, target):
    return (prediction["mean"] - target).square().sum()


def contrastive(prediction, target):
    return (prediction["mean"] @ prediction["mean"].T - (target @ target.T)).square().mean()


def test_losses_of_several_predictions_are_looked_into():
    both = Both(torch.rand(3, 2), torch.rand(3, 2))
    assert not grows_with_batch(likelihood, both, ONE)
    assert not compares_samples(likelihood, both, ONE)
    assert grows_with_batch(mean_alone, both._asdict(), ONE)
    assert compares_samples(contrastive, both._asdict(), ONE)
    assert label_contract(likelihood, ONE, both) == LabelContract()


def classes(prediction, target):
    known = target != 255
    each = F.cross_entropy(prediction["scores"], torch.where(known, target, 0), reduction="none")
    return torch.where(known, each, 0.0).sum() / known.sum() + prediction["box"].square().mean()


def test_classes_of_one_of_several_predictions_are_found():
    several = {"box": torch.rand(4, 4, 1), "scores": torch.rand(4, 3)}
    found = label_contract(lambda p, t: F.cross_entropy(p["scores"], t), torch.tensor([0, 1, 2, 1]), several)
    assert found == LabelContract(classes=3, ignored=(-100,))
    target = torch.tensor([0, 1, 2, 1])
    assert label_contract(classes, target, several).classes == 3


class Masked(nn.Conv2d):
    """The scores of two classes, the second of which is masked."""

    def __init__(self, score):
        super().__init__(4, 2, 1)
        self.score = score

    def forward(self, z):
        return torch.where(torch.tensor([True, False]).reshape(2, 1, 1), super().forward(z), self.score)


def of_the_first(prediction, target):
    return (prediction[:, :1] - target[:, :1]).abs().mean()


def test_prediction_may_be_infinite_and_not_nan(make, run):
    def compiled(score):
        heads = {"a": nn.Conv2d(4, 1, 1), "b": Masked(score)}
        return compile_model(make(heads=heads, losses={"a": F.l1_loss, "b": of_the_first}))

    assert check_parity(compiled(-torch.inf), run).max_relative_error <= TOLERANCE
    with pytest.raises(ModelInvalid, match=r"prediction of head\.b\.predict is nan .* have no value at zero"):
        check_parity(compiled(torch.nan), run)


def test_infinite_numbers_agree_with_themselves_alone():
    expected = {"prediction": np.array([1.0, -np.inf, np.inf])}
    for found, error in (([1.0, -np.inf, np.inf], 0), ([1.5, -np.inf, np.inf], 0.5), ([1.0, np.inf, np.inf], np.inf)):
        assert relative_errors({"prediction": np.array(found)}, expected) == {"prediction": error}
    assert relative_errors({"prediction": np.array([1.0, -9.0, np.inf])}, expected) == {"prediction": np.inf}
