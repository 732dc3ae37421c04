"""A device's answers to plans of a linear model, on real data sets and a state folder."""

import hashlib

import msgspec
import numpy as np
import pytest
from family import CLASSES, VALUES, X, golden, write_data

from edge_runtime.agent.work import DownloadedPlan, WorkRefused
from edge_runtime.datasets.feature_sets import linear_bundle
from edge_runtime.datasets.feature_sources import SOURCES
from edge_runtime.linear.dual import ascend, local_gap, order_of, sum_of
from edge_runtime.linear.gradient import gradient, smoothness
from edge_runtime.linear.losses import LOSSES
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.linear import DualSteps, ForwardStep, GradientStep, MixedEffectPart, StreamStep
from edge_runtime.wire.messages import Plan, Training
from edge_runtime.worker import LocalWorker

BLOB = Blob(digest=hashlib.sha256().hexdigest(), size_bytes=1)
STEPS = DualSteps(curvature=25.0, passes=1.5)


class Device:
    """A device with the golden samples of a task as its data."""

    def __init__(self, root, *, loss="hinge", task=2):
        self.values = loss in {"squared", "half_squared"}
        self.x = X[task].astype(np.float32).astype(np.float64)
        self.y = VALUES[task].astype(np.float32).astype(np.float64) if self.values else CLASSES[task]
        stored = self.y.astype(np.float32) if self.values else (self.y > 0).astype(np.uint8)
        self.data = write_data(root / "data", "score" if self.values else "activity", stored, X[task])
        self.manifest, _ = linear_bundle("test", SOURCES["school" if self.values else "har"], 5, loss)
        self.state, self.loss = root / "state", LOSSES[loss]
        self.reports = []

    @property
    def worker(self):
        return LocalWorker(self.data, self.state, 1)

    def plan(self, linear, w, number=0, split=None):
        common = {
            "round": number,
            "phase": "train",
            "group": self.manifest.task_names[0],
            "tasks": self.manifest.task_names,
        }
        training = None if split else Training(epochs=1, first_epoch=0, seed=4, probe_every=0)
        plan = Plan(
            work="evaluate" if split else "train", bundle=BLOB, weights=BLOB, signature="0" * 128,
            training=training, linear=linear, data_split=split, deadline_s=1.0, **common,
        )  # fmt: skip
        return DownloadedPlan(plan=plan, manifest=self.manifest, weights=np.array(w, np.float32), graphs=None)

    def train(self, linear, w=(0,) * 5, number=0):
        return self.worker.train(self.plan(linear, w, number), lambda *report: self.reports.append(report))

    def evaluate(self, linear, w):
        return self.worker.evaluate(self.plan(linear, w, split="test"), lambda *_: None)

    def alpha(self, before, w, number, linear=STEPS):
        order = order_of(len(self.x), linear.passes, (4, number))
        w = np.array(w, np.float32).astype(np.float64)
        return ascend(self.x, self.y, before, w, self.loss, linear.curvature, order)


def since(number, **changes):
    return msgspec.structs.replace(STEPS, since=number, **changes)


def test_dual_steps_go_on_from_the_round_that_the_plan_names(tmp_path):
    device = Device(tmp_path)
    w = np.array([0.3, -0.2, 0.1, 0.4, 0.0], np.float32)
    first = device.train(STEPS, w, 3)
    alpha = device.alpha(np.zeros(18), w, 3)
    np.testing.assert_array_equal(first.weights, sum_of(device.x, alpha).astype(np.float32))
    assert (first.linear.steps, first.examples) == (27, {"activity": 18})
    gap = local_gap(device.x, device.y, np.zeros(18), w.astype(np.float64), device.loss)
    assert first.linear.gap == pytest.approx(gap)
    assert device.reports[-1] == ("train", 1, 1)
    for _ in range(2):  # again, as after a power cut
        second = device.train(since(3), -w, 4)
        expected = sum_of(device.x, device.alpha(alpha, -w, 4))
        np.testing.assert_array_equal(second.weights, expected.astype(np.float32))


def test_an_answer_that_did_not_count_is_forgotten(tmp_path):
    device = Device(tmp_path)
    device.train(STEPS, number=0)
    counted = device.train(since(0), number=1)
    device.train(since(1), number=2)
    again = device.train(since(1), number=3)
    only = Device(tmp_path / "other")
    for number, before in ((0, None), (1, 0)):
        only.train(msgspec.structs.replace(STEPS, since=before), number=number)
    np.testing.assert_array_equal(again.weights, only.train(since(1), number=3).weights)
    assert not np.array_equal(again.weights, counted.weights)


@pytest.mark.parametrize("damage", ["missing", "short", "infinite"])
def test_a_device_that_has_lost_its_variables_answers_with_0(tmp_path, damage):
    device = Device(tmp_path)
    device.train(STEPS, number=0)
    (path,) = (device.state / "dual").iterdir()
    match damage:
        case "missing":
            path.unlink()
        case "short":
            path.write_bytes(path.read_bytes()[:-3])
        case "infinite":
            path.write_bytes(np.full(18, np.inf).tobytes())
    found = device.train(since(0), number=1)
    assert not found.weights.any()
    assert (found.linear.gap, found.linear.steps) == (None, 0)
    assert device.train(since(1), number=2).weights.any()


def test_gradient_and_statistics_are_of_the_devices_samples(tmp_path):
    device = Device(tmp_path, loss="half_squared")
    w = np.array([0.3, -0.2, 0.1, 0.4, 0.5], np.float32)
    found = device.train(GradientStep(), w)
    expected = gradient(device.x, device.y, w.astype(np.float64), device.loss)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    assert found.linear.smoothness == pytest.approx(smoothness(device.x, device.loss))
    moved = device.train(ForwardStep(step=0.1), w)
    np.testing.assert_allclose(moved.weights, w - 0.1 * expected, rtol=1e-5)
    assert moved.linear == found.linear
    stream = device.train(StreamStep(first=16, count=4), w)
    seen = [16, 17, 0, 1]
    slope = gradient(device.x[seen], device.y[seen], w.astype(np.float64), device.loss)
    np.testing.assert_allclose(stream.weights, slope, rtol=1e-5)
    assert (stream.examples, stream.linear.steps) == ({"score": 4}, 4)
    loss = {"score": float(device.loss.value(device.x @ w.astype(np.float64), device.y).mean())}
    assert found.train_loss == pytest.approx(loss)
    known = golden("mixed_effect")
    part = MixedEffectPart(shared=known["alpha"], ridge=known["lam"], width=0.4)
    statistics = device.train(part).weights
    a = np.array(known["linear_shared"]["message_A"][2])
    np.testing.assert_allclose(statistics[:15], a[np.tril_indices(5)], rtol=1e-4)
    np.testing.assert_allclose(statistics[15:], known["linear_shared"]["message_b"][2], rtol=1e-4)


def test_evaluation_has_loss_and_metric_and_with_mixed_effect_the_private_part(tmp_path):
    device = Device(tmp_path, loss="half_squared")
    shared = golden("mixed_effect")["linear_shared"]["shared_weight"]
    plain = device.evaluate(GradientStep(), shared)
    known = golden("mixed_effect")
    part = MixedEffectPart(shared=known["alpha"], ridge=known["lam"], width=0.4)
    private = device.evaluate(part, shared)
    assert private.metrics["score"] < plain.metrics["score"]
    assert plain.loss["score"] == pytest.approx(plain.metrics["score"] ** 2 / 2)
    assert plain.examples == {"score": 18}
    classes = Device(tmp_path / "classes")
    w = golden("mocha")["optimum_fixed_sigma"]["W"]
    assert classes.evaluate(None, np.array(w)[:, 2]).metrics["activity"] > 0.9


def test_plans_that_cannot_be_answered_are_refused(tmp_path):
    device = Device(tmp_path)
    with pytest.raises(WorkRefused, match="does not say what to do"):
        device.train(None)
    with pytest.raises(WorkRefused, match="no val set"):
        device.worker.evaluate(device.plan(STEPS, (0,) * 5, split="val"), lambda *_: None)
    (device.state / "dual").parent.mkdir(exist_ok=True)
    (device.state / "dual").write_bytes(b"")
    with pytest.raises(WorkRefused, match="state folder"):
        device.train(STEPS)
    other = Device(tmp_path / "other", loss="half_squared")
    other.manifest = device.manifest
    with pytest.raises(WorkRefused, match="no labels for activity"):
        other.train(STEPS)
