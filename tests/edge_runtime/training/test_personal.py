"""Rounds of personal methods on the golden problems, by the trainer that devices run; float32, so to six digits."""

import errno
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import samples

from edge_runtime.datasets.dataset import Split
from edge_runtime.training.checkpoint import Checkpoint
from edge_runtime.training.moreau import MoreauSgd
from edge_runtime.training.personal import optimizer_of, pulled, runs
from edge_runtime.training.round_trainer import RoundTrainer
from edge_runtime.training.trainer import Trainer
from edge_runtime.wire.personal import Held, MoreauModel, OwnModel, OwnParts
from edge_runtime.wire.tensors import TensorTable

FAMILY = Path(__file__).parents[2] / "fixtures" / "family"
GOLDEN = msgspec.json.decode((FAMILY / "personalised.json").read_bytes())
PROBLEM = msgspec.json.decode((FAMILY / "problem_small.json").read_bytes())
X = [np.array(x, np.float32) for x in PROBLEM["X"]]
Y = [np.array(y, np.float32) for y in PROBLEM["y_regression"]]
SHARES = np.array([len(y) for y in Y]) / sum(len(y) for y in Y)
LINEAR = TensorTable.of({"encoder.w": (5,)})
LOW_RANK = TensorTable.of({"encoder.b": (5, 2), "head.a.w": (2,)})


class NumpyModel:
    """What the trainer needs of a model: mean squared errors / 2 of X w, or of X B a, with their gradients."""

    tasks, trains_encoder = ("a",), True
    manifest = SimpleNamespace(
        inputs={"image": None}, tasks=(SimpleNamespace(name="a", target=SimpleNamespace(dtype="float32")),)
    )

    def __init__(self, table):
        self.table, self.weights = table, np.zeros(table.size, np.float32)
        self.gradient = np.zeros_like(self.weights)
        self.trained = self.trained_in(("encoder", "head.a"))

    @property
    def parameters(self):
        return self.weights

    def trained_in(self, parts):
        return tuple(where for part, where in self.table.parts.items() if part in parts)

    def reseed(self, *_):
        pass

    begin_round = mark_checkpoint = finish_round = reseed

    def learn(self, x, targets, *_):
        x, y = x["x"], targets["a"]
        w, g = self.table.views(self.weights), self.table.views(self.gradient)
        if "encoder.w" in w:
            residual = x @ w["encoder.w"] - y
            g["encoder.w"][:] = x.T @ residual / len(y)
        else:
            residual = x @ w["encoder.b"] @ w["head.a.w"] - y
            g["encoder.b"][:] = np.outer(x.T @ residual, w["head.a.w"]) / len(y)
            g["head.a.w"][:] = w["encoder.b"].T @ x.T @ residual / len(y)
        return {"a": float(residual @ residual) / 2 / len(y)}


class Devices:
    """The four devices of the problem, each with its state folder."""

    def __init__(self, folder, table, personal, *, checkpoint_s=math.inf, **training):
        self.table, self.personal = table, personal
        self.settings = samples.training(batch=1000, momentum=0.0, weight_decay=0.0, **training)
        self.rounds = [RoundTrainer(folder / str(k), checkpoint_s) for k in range(len(X))]
        self.folder = folder

    def plan(self, number):
        settings = msgspec.structs.replace(self.settings, first_epoch=number * self.settings.epochs)
        return samples.plan(number, training=settings, personal=self.personal)

    def train(self, k, number, received, report=lambda *_: None):
        """What device k sends in a round, and the weights of its own."""
        plan, model, device = self.plan(number), NumpyModel(self.table), self.rounds[k]
        received = received.astype(np.float32)
        due = runs(
            self.personal,
            plan.training,
            received=received,
            own=device.restored(plan, self.table, received),
            ranges=model.trained_in,
            parts=tuple(self.table.parts),
        )
        trained = device.train(
            due,
            plan,
            Trainer(model, Split(inputs={"image": X[k]}, labels={"a": Y[k]})),
            key=f"{number}",
            started_s=0.0,
            validate=lambda: None,
            report=report,
        )
        after = samples.plan(number + 1, work="evaluate", training=None, personal=self.personal)
        return trained.weights, device.restored(after, self.table, received)

    def round(self, number, received, shares=SHARES):
        """The mean of what all send, and the weights of their own."""
        sent, own = zip(*(self.train(k, number, received) for k in range(len(X))), strict=True)
        return np.average(np.array(sent, np.float64), axis=0, weights=shares), own


def test_ditto_keeps_a_model_of_each_devices_own(tmp_path):
    golden = GOLDEN["ditto"]
    own = OwnModel(strength=golden["lam"], epochs=2)
    devices, w = Devices(tmp_path, LINEAR, own, epochs=2, lr=0.2), np.zeros(5)
    for number, expected in enumerate(golden["trajectory"]["rounds"]):
        w, v = devices.round(number, w)
        np.testing.assert_allclose(w, expected["w"], atol=2e-6)
        np.testing.assert_allclose(v, expected["v"], atol=2e-6)
    own = OwnModel(strength=golden["lam"], epochs=150)
    w, v = Devices(tmp_path / "still", LINEAR, own, epochs=1, lr=0.2).round(9, np.array(golden["global_optimum"]))
    np.testing.assert_allclose(w, golden["global_optimum"], atol=2e-6)
    np.testing.assert_allclose(v, golden["personal_optimum"], atol=2e-5)


def test_pfedmes_model_follows_the_devices(tmp_path):
    golden = GOLDEN["pfedme"]
    exact = MoreauModel(strength=golden["lam"], steps=150, lr=0.2)  # so many steps that θ is the minimum
    devices, w = Devices(tmp_path, LINEAR, exact, epochs=2, lr=0.2), np.zeros(5)
    for number, expected in enumerate(golden["trajectory"]["rounds"]):
        w, _ = devices.round(number, w)
        np.testing.assert_allclose(w, expected, atol=2e-6)
    _, theta = Devices(tmp_path / "still", LINEAR, exact, epochs=1, lr=0.2).round(
        9, np.array(golden["global_stationary"])
    )
    np.testing.assert_allclose(theta, golden["personal"], atol=2e-5)


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_heads_stay_and_the_body_is_averaged(method, tmp_path):
    golden = GOLDEN[method]
    personal = OwnParts(parts=("head.a",), start=samples.blob(), own_epochs=golden.get("head_steps", 0))
    steps = golden["body_steps"] if method == "fedrep" else golden["joint_steps"]
    devices = Devices(tmp_path, LOW_RANK, personal, epochs=steps, lr=golden["eta"])
    start = np.concatenate([np.ravel(golden["B"]), golden["heads_start"]])
    mean, own = devices.round(0, start)
    np.testing.assert_allclose([each[10:] for each in own], golden["heads"], atol=2e-6)
    np.testing.assert_allclose(mean[:10], np.ravel(golden["B_after_weighted_average"]), atol=2e-6)
    if method == "fedrep":
        plain, _ = Devices(tmp_path / "plain", LOW_RANK, personal, epochs=steps, lr=golden["eta"]).round(0, start, None)
        np.testing.assert_allclose(plain[:10], np.ravel(golden["B_after_plain_average"]), atol=2e-6)


def test_a_round_whose_checkpoint_cannot_be_written_goes_on_and_says_so(tmp_path, caplog, monkeypatch):
    start = np.concatenate([np.ravel(GOLDEN["fedper"]["B"]), GOLDEN["fedper"]["heads_start"]])
    personal = OwnModel(strength=0.5, epochs=1)
    whole = Devices(tmp_path / "whole", LOW_RANK, personal, epochs=2, lr=0.2).train(0, 0, start)
    devices = Devices(tmp_path / "full", LOW_RANK, personal, checkpoint_s=0.0, epochs=2, lr=0.2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", full)
        found = devices.train(0, 0, start)
    assert "no checkpoint of round 0 could be written: No space left on device" in caplog.text
    np.testing.assert_array_equal(found[0], whole[0])


def test_a_round_that_is_to_begin_again_forgets_its_checkpoints(tmp_path):
    start = np.concatenate([np.ravel(GOLDEN["fedper"]["B"]), GOLDEN["fedper"]["heads_start"]])
    devices = Devices(tmp_path, LOW_RANK, OwnModel(strength=0.5, epochs=1), checkpoint_s=0.0, epochs=2, lr=0.2)
    devices.train(0, 0, start)
    assert [path for path in (tmp_path / "0").glob("checkpoint*") if path.is_file()]
    devices.rounds[0].forget()
    assert not [path for path in (tmp_path / "0").glob("checkpoint*") if path.is_file()]


class PowerCut(Exception):
    pass


@pytest.mark.parametrize(
    "personal",
    [
        OwnModel(strength=0.5, epochs=3),
        MoreauModel(strength=0.5, steps=3, lr=0.1),
        OwnParts(parts=("head.a",), start=samples.blob(), own_epochs=2),
    ],
)
def test_a_device_that_is_killed_at_any_step_goes_on_to_the_same_bits(personal, tmp_path):
    start = np.concatenate([np.ravel(GOLDEN["fedper"]["B"]), GOLDEN["fedper"]["heads_start"]])
    make = lambda name: Devices(tmp_path / name, LOW_RANK, personal, checkpoint_s=0.0, epochs=3, lr=0.2)  # noqa: E731
    whole = make("whole")
    steps = []
    expected = [whole.train(0, number, start, lambda *told: steps.append(told)) for number in (0, 1)]
    for killed_at in range(1, len(steps) // 2):
        devices, told = make(f"cut-{killed_at}"), itertools.count(1)
        devices.train(0, 0, start)

        def cut(*_, told=told, killed_at=killed_at):
            if next(told) == killed_at:
                raise PowerCut

        with pytest.raises(PowerCut):
            devices.train(0, 1, start, cut)
        devices.rounds[0] = RoundTrainer(devices.folder / "0", 0.0)
        for found, wanted in zip(devices.train(0, 1, start), expected[1], strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert killed_at > 3


def test_momentum_of_both_of_dittos_models_goes_on(tmp_path):
    devices = Devices(tmp_path, LINEAR, OwnModel(strength=0.5, epochs=1), epochs=1, lr=0.1)
    devices.settings = msgspec.structs.replace(devices.settings, momentum=0.9)
    first = devices.train(0, 0, np.zeros(5))
    sent, own = devices.train(0, 1, np.zeros(5))
    np.testing.assert_allclose(sent, 1.9 * first[0], rtol=1e-5)  # the same gradient once more, and 0.9 of the first
    assert np.abs(own).sum() > 2 * np.abs(first[1]).sum()


def test_only_pfedme_has_an_optimizer_of_its_own():
    settings = samples.training()
    assert isinstance(optimizer_of(settings, MoreauModel(strength=1.0, steps=2, lr=0.1)), MoreauSgd)
    assert not isinstance(optimizer_of(settings, OwnModel(strength=1.0, epochs=1)), MoreauSgd)


def test_parts_are_held_to_a_centre_and_the_others_are_not():
    """One step from weights without a gradient moves what is held by lr · strength of the way, and nothing else."""
    model = NumpyModel(LOW_RANK)
    start = np.zeros(LOW_RANK.size, np.float32)  # with B = 0 and a = 0 no gradient is left
    settings = samples.training(batch=1000, momentum=0.0, weight_decay=0.0, lr=0.1)
    (run,) = runs(None, settings, received=start, own=start, ranges=model.trained_in, parts=tuple(LOW_RANK.parts))
    held = Held(parts=("head.a",), centre=samples.blob(), strength=2.0)
    run = pulled(run, held, start + 1, model.trained_in)
    model.weights[:] = run.start
    trainer = Trainer(model, Split(inputs={"image": X[0]}, labels={"a": Y[0]}))
    trainer.train(run.settings, np.zeros_like(start), received=run.received, held=run.held)
    np.testing.assert_allclose(model.weights, [0] * 10 + [0.2, 0.2], rtol=1e-6)
