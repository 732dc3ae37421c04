import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.training.checkpoint import MAX_HEADER_BYTES, Checkpoint, CheckpointHeader, key_of
from edge_runtime.training.progress import ProbeProgress, TrainingProgress
from edge_runtime.training.trainer import Trainer
from edge_runtime.training.weighting_state import WeightingState
from edge_runtime.wire.training import GradNormWeighting
from edge_runtime.worker import LocalWorker

ROOT = Path(__file__).parents[3]
POSITION = TrainingProgress(
    steps=3,
    loss_sums={"a": 0.1 + 0.2},
    labelled={"a": 7},
    probes=ProbeProgress(count=2, mean=((1 / 3,),), squares=((2e-9,),), is_due=True),
    weighting_state=WeightingState(method="gradnorm", values={"a": 1.0}),
)
HEADER = CheckpointHeader(key="k", progress=POSITION, val_loss={"a": 1e-3}, wall_s=4.5)
WEIGHTS, STATE = np.arange(5, dtype=np.float32), np.arange(3, dtype=np.float32) / 7


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state" / "checkpoint"
    Checkpoint(path, 0).save(HEADER, WEIGHTS, STATE)
    return path


def read(path, key="k", weights=5, state=3):
    arrays = np.full(weights, -1, np.float32), np.full(state, -1, np.float32)
    return Checkpoint(path, 0).load(key, *arrays), *arrays


def test_checkpoint_gives_back_what_was_saved(path):
    header, weights, state = read(path)
    assert header == HEADER
    np.testing.assert_array_equal(weights, WEIGHTS)
    np.testing.assert_array_equal(state, STATE)


@pytest.mark.parametrize(
    ("key", "weights", "state"), [("other", 5, 3), ("k", 4, 3), ("k", 6, 2 + 1), ("k", 5, 2), ("k", 5, 4)]
)
def test_checkpoint_of_another_plan_or_model_is_not_there(path, key, weights, state):
    found = read(path, key, weights, state)
    assert found[0] is None
    assert all((vector == -1).all() for vector in found[1:])


def test_damaged_checkpoint_is_not_there(path):
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert read(path)[0] is None
    for damaged in (
        whole + b"x",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + whole[8:],
        whole[:8] + b"\xff" + whole[9:],
        whole[:8] + b"[" * (len(whole) - 8),
    ):
        path.write_bytes(damaged)
        assert read(path)[0] is None
    path.unlink()
    assert read(path)[0] is None


def test_checkpoint_is_due_after_its_interval(path):
    clock = Clock()
    checkpoint = Checkpoint(path, 10.0, clock)
    clock.now_s += 9
    assert not checkpoint.is_due
    clock.now_s += 1
    assert checkpoint.is_due
    checkpoint.save(HEADER, WEIGHTS, STATE)
    assert not checkpoint.is_due
    clock.now_s += 10
    checkpoint.load("k", WEIGHTS.copy(), STATE.copy())
    assert not checkpoint.is_due
    assert Checkpoint(path, 0).is_due


def test_key_is_of_plan_data_and_engine(tiny):
    plan = tiny.plan()
    keys = {
        key_of(plan, 10, "engine"),
        key_of(plan, 11, "engine"),
        key_of(plan, 10, "other"),
        key_of(tiny.plan(round_number=2), 10, "engine"),
        key_of(tiny.plan(training=tiny.change(lr=0.5)), 10, "engine"),
    }
    assert len(keys) == 5
    assert key_of(tiny.plan(), 10, "engine") in keys


OPTIONS = {
    "plain": {},
    "probes": {"probe_every": 2},
    "adamw": {"optimizer": "adamw", "momentum": 0.9, "lr": 0.001},
    "proximal and clipped": {"proximal_mu": 0.1, "clip_norm": 0.5},
    "gradnorm": {"weighting": GradNormWeighting()},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_goes_on_bit_for_bit_from_every_step(tiny, tmp_path, options):
    from edge_runtime.training.optimizer import make_optimizer

    settings = tiny.change(**options)

    def begin():
        model = tiny.model()
        return model, np.zeros(make_optimizer(settings).table(model.table.parameters).size, np.float32)

    model, state = begin()
    checkpoints = []

    def save(position):
        checkpoint = Checkpoint(tmp_path / str(len(checkpoints)), 0)
        checkpoint.save(CheckpointHeader(key="", progress=position(), val_loss=None, wall_s=0.0), model.weights, state)
        checkpoints.append(checkpoint)

    whole = Trainer(model, tiny.dataset.train).train(settings, state, save=save)
    assert len(checkpoints) == 6
    for checkpoint in checkpoints:
        again, other = begin()
        start = again.parameters.copy()
        header = checkpoint.load("", again.weights, other)
        rest = Trainer(again, tiny.dataset.train).train(settings, other, received=start, after=header.progress)
        assert again.weights.tobytes() == model.weights.tobytes()
        assert other.tobytes() == state.tobytes()
        assert rest.loss == whole.loss
        assert rest.affinities.result() == whole.affinities.result()
        assert rest.weighting_state == whole.weighting_state


def run_round(tiny, folder, plan, pause_s):
    out = folder / "out"
    arguments = [tiny.folder, tiny.data, folder / "state", plan, out, pause_s]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.device.round", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return process, out


@pytest.mark.process
def test_process_killed_at_random_ends_as_one_that_was_not(tiny, tmp_path):
    import msgspec

    plan = tmp_path / "plan.json"
    plan.write_bytes(msgspec.json.encode(tiny.plan(training=tiny.change(epochs=4, probe_every=3))))
    (tmp_path / "alone").mkdir()
    process, out = run_round(tiny, tmp_path / "alone", plan, 0)
    steps = [int(line) for line in process.stdout]
    assert process.wait() == 0
    assert steps == list(range(1, 13))
    expected = out.read_bytes()
    random = np.random.default_rng(11)
    (tmp_path / "killed").mkdir()
    kills, seen = 0, []
    for _ in range(40):
        process, out = run_round(tiny, tmp_path / "killed", plan, 0.05)
        first = process.stdout.readline()
        if not first:
            assert process.wait() == 0
            break
        seen.append(int(first))
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        kills += process.wait() == -signal.SIGKILL
        if out.exists():
            break
    assert kills >= 3
    assert seen == sorted(seen), "training went back"
    assert seen[-1] > seen[0]
    assert out.read_bytes() == expected


@pytest.mark.slow
def test_worker_goes_on_where_it_was_stopped(tiny, tmp_path):
    class Stopped(Exception):
        pass

    def until(step):
        def report(stage, done, _):
            done_steps.append((stage, done))
            if (stage, done) == ("train", step):
                raise Stopped

        return report

    store = tiny.store(tmp_path / "blobs")
    plan = tiny.plan(training=tiny.change(epochs=2))
    weights = tiny.weights
    done_steps = []
    expected = LocalWorker(tiny.data, tmp_path / "other", 1).train(
        tiny.downloaded(plan, tiny.manifest, store, weights), until(99)
    )
    worker = LocalWorker(tiny.data, tmp_path / "state", 1, checkpoint_s=0)
    with pytest.raises(Stopped):
        worker.train(tiny.downloaded(plan, tiny.manifest, store, weights), until(4))
    done_steps.clear()
    fresh = LocalWorker(tiny.data, tmp_path / "state", 1, checkpoint_s=0)
    result = fresh.train(tiny.downloaded(plan, tiny.manifest, store, weights), until(99))
    assert [step for step in done_steps if step[1] and step[0] == "train"] == [("train", 5), ("train", 6)]
    assert "evaluate" not in {stage for stage, _ in done_steps}
    assert result.weights.tobytes() == expected.weights.tobytes()
    assert (result.train_loss, result.val_loss) == (expected.train_loss, expected.val_loss)
    fresh.train(tiny.downloaded(tiny.plan(round_number=2), tiny.manifest, store, weights), until(99))
