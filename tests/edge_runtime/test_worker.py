from itertools import pairwise

import msgspec
import numpy as np
import pytest

from edge_runtime.agent.work import NoData, WorkCancelled, WorkerUnusable, WorkRefused
from edge_runtime.training.engine import is_training_build
from edge_runtime.training.schedule import learning_rate
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.trainer import Trainer, evaluate
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.tensors import transfer
from edge_runtime.wire.training import GradNormWeighting, UncertaintyWeighting
from edge_runtime.worker import LocalWorker


@pytest.fixture
def worker(tiny, tmp_path):
    return LocalWorker(tiny.data, tmp_path / "state")


@pytest.fixture
def store(tiny, tmp_path):
    return tiny.store(tmp_path / "blobs")


class Reports(list):
    def __call__(self, stage, done, total):
        self.append((stage, done, total))


def weights_of(tiny):
    """As the agent hands them over: a read-only view."""
    weights = tiny.weights.copy()
    weights.flags.writeable = False
    return weights


def test_worker_reports_software_data_and_memory(worker):
    hello = worker.hello()
    assert hello.examples == {"train": 10, "val": 5, "test": 3}
    assert hello.tasks == ("depth", "normals", "segmentation")
    assert hello.engine.startswith("onnxruntime ")
    assert hello.memory_bytes > 0


def test_worker_takes_up_samples_that_come_between_rounds(data_copy, tmp_path, caplog):
    worker = LocalWorker(data_copy, tmp_path / "state")
    before = worker.hello()
    assert worker.hello() == before
    for path in (data_copy / "train").glob("*.npy"):
        whole = np.load(path)
        grown = path.with_suffix(".new")
        with grown.open("wb") as file:
            np.save(file, np.concatenate([whole, whole[:2]]))
        grown.replace(path)
    assert worker.hello().examples["train"] == before.examples["train"] + 2
    (data_copy / "train/image.npy").write_bytes(b"half")
    assert worker.hello().examples["train"] == before.examples["train"] + 2
    assert "it stays as it was" in caplog.text


def test_worker_that_the_kernel_does_not_hold_gives_up_what_takes_too_much(tiny, store, tmp_path):
    worker = LocalWorker(tiny.data, tmp_path / "state", unheld_limit_bytes=33 << 20)
    plan = tiny.plan(data_split="test")
    with pytest.raises(WorkRefused, match=r"the work took \d+ MiB, and the service may have 33 MiB") as refused:
        worker.evaluate(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), Reports())
    assert refused.value.reason == "memory"


def test_worker_trains_by_the_plan(tiny, worker, store):
    reports = Reports()
    result = worker.train(
        tiny.downloaded(tiny.plan(training=tiny.settings), tiny.manifest, store, weights_of(tiny)), reports
    )
    scale = np.abs(tiny.reference["weights"]).max()
    np.testing.assert_allclose(result.weights, tiny.reference["weights"], atol=1e-4 * scale)
    assert result.examples == dict.fromkeys(tiny.manifest.task_names, 10)
    assert result.affinity is None
    assert result.wall_s > 0
    assert result.peak_rss_bytes > 0
    assert [stage for stage, *_ in reports] == ["evaluate"] * 2 + ["train"] * 7  # when a stage begins, and each step
    assert reports[-1] == ("train", 6, 6)


def test_worker_reports_the_validation_loss_of_the_received_weights(tiny, worker, store):
    result = worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
    np.testing.assert_allclose(
        [result.val_loss[task] for task in tiny.manifest.task_names], tiny.reference["val_before"], rtol=1e-4
    )
    plan = tiny.plan(data_split="val")
    found = worker.evaluate(tiny.downloaded(plan, tiny.manifest, store, tiny.reference["weights"]), Reports())
    np.testing.assert_allclose(
        [found.loss[task] for task in tiny.manifest.task_names], tiny.reference["val_after"], rtol=1e-3
    )
    assert found.examples == dict.fromkeys(tiny.manifest.task_names, 5)


def test_worker_measures_metrics_where_it_evaluates(tiny, worker, store):
    found = worker.evaluate(
        tiny.downloaded(tiny.plan(data_split="test"), tiny.manifest, store, weights_of(tiny)), Reports()
    )
    model = tiny.model()
    scores = TaskMetrics(model)
    assert found.loss == evaluate(model, tiny.dataset.test, 16, metrics=scores)
    assert found.metrics == scores.result()
    assert set(found.metrics) == {"depth", "normals", "segmentation"}
    bare = tuple(msgspec.structs.replace(task, metric=None) for task in tiny.manifest.tasks)
    without = msgspec.structs.replace(tiny.manifest, tasks=bare)
    again = worker.evaluate(tiny.downloaded(tiny.plan(data_split="test"), without, store, weights_of(tiny)), Reports())
    assert (again.loss, again.metrics) == (found.loss, None)


def test_worker_measures_affinities_where_the_plan_asks_for_them(tiny, worker, store):
    plan = tiny.plan(training=tiny.change(epochs=1, probe_every=2))
    reports = Reports()
    result = worker.train(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), reports)
    assert result.affinity.tasks == tiny.manifest.task_names
    assert result.affinity.count == 2
    stages = [stage for stage, *_ in reports]
    assert [(a, b) for a, b in pairwise(stages) if "probe" in (a, b)] == [("train", "probe"), ("probe", "train")] * 2


def test_worker_trains_a_group_with_graphs_it_holds(tiny, worker, store):
    worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
    manifest, weights = tiny.group("depth", "normals")
    result = worker.train(tiny.downloaded(tiny.plan(round_number=2), manifest, store, weights), Reports())
    assert tuple(result.train_loss) == ("depth", "normals")
    assert result.weights.shape == weights.shape


def test_rounds_of_one_client_are_plain_training_bit_for_bit(tiny, worker, store):
    """R rounds of one epoch, the server's average of one update being that update, are R epochs on their own."""
    rounds, lr = 3, 0.05
    model, velocity = tiny.model(), tiny.velocity()
    weights = weights_of(tiny)
    for r in range(rounds):
        settings = tiny.change(epochs=1, first_epoch=r, lr=learning_rate(lr, r, rounds))
        alone = Trainer(model, tiny.dataset.train).train(settings, velocity)
        plan = tiny.plan(round_number=r + 1, training=settings)
        result = worker.train(tiny.downloaded(plan, tiny.manifest, store, weights), Reports())
        assert result.train_loss == alone.loss
        weights = result.weights
        assert weights.tobytes() == model.weights.tobytes()
    assert (
        evaluate(model, tiny.dataset.val, 16)
        == worker.evaluate(tiny.downloaded(tiny.plan(data_split="val"), tiny.manifest, store, weights), Reports()).loss
    )


def test_round_that_is_done_again_gives_the_same_bits(tiny, worker, store):
    """A power cut after training and before the update was sent: the momentum of the round before is still there."""
    first = worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
    plan = tiny.plan(round_number=2, training=tiny.change(epochs=1, first_epoch=1))
    once = worker.train(tiny.downloaded(plan, tiny.manifest, store, first.weights), Reports())
    again = worker.train(tiny.downloaded(plan, tiny.manifest, store, first.weights), Reports())
    assert once.weights.tobytes() == again.weights.tobytes()


def test_worker_that_missed_a_round_begins_without_momentum(tiny, worker, store):
    first = worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
    plan = tiny.plan(round_number=3)
    found = worker.train(tiny.downloaded(plan, tiny.manifest, store, first.weights), Reports())
    model, velocity = tiny.model(), tiny.velocity()
    model.weights[:] = first.weights
    Trainer(model, tiny.dataset.train).train(plan.training, velocity)
    assert found.weights.tobytes() == model.weights.tobytes()


def test_worker_without_a_data_set_is_unusable(tmp_path):
    with pytest.raises(NoData, match="no data in .*nowhere: .*nowhere is not a data set"):
        LocalWorker(tmp_path / "nowhere", tmp_path / "state")


def test_worker_without_validation_images_measures_no_validation_loss(tiny, data_copy, tmp_path, store):
    for path in (data_copy / "val").iterdir():
        path.unlink()
    (data_copy / "val").rmdir()
    worker = LocalWorker(data_copy, tmp_path / "state")
    assert (
        worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports()).val_loss is None
    )
    with pytest.raises(WorkRefused, match="no val set") as caught:
        worker.evaluate(tiny.downloaded(tiny.plan(data_split="val"), tiny.manifest, store, weights_of(tiny)), Reports())
    assert caught.value.reason == "no_data"


def without(data, *tasks):
    for split in ("train", "val", "test"):
        for task in tasks:
            (data / split / f"{task}.npy").unlink()


@pytest.mark.slow
def test_worker_without_labels_of_a_task_trains_the_others(tiny, data_copy, tmp_path, store):
    """The head of that task comes back as it came and weighs nothing; the rest is a group of the other tasks."""
    without(data_copy, "normals")
    worker = LocalWorker(data_copy, tmp_path / "state")
    manifest, start = tiny.group("depth", "segmentation")
    alone = LocalWorker(tiny.data, tmp_path / "alone")
    weights, expected = weights_of(tiny), start
    for number in (1, 2):
        plan = tiny.plan(round_number=number, training=tiny.change(epochs=1, first_epoch=number - 1, probe_every=2))
        found = worker.train(tiny.downloaded(plan, tiny.manifest, store, weights), Reports())
        other = alone.train(tiny.downloaded(plan, manifest, store, expected), Reports())
        assert found.examples == {"depth": 10, "segmentation": 10}
        assert found.train_loss == other.train_loss
        assert found.val_loss == other.val_loss
        assert found.affinity == other.affinity
        assert found.affinity.tasks == ("depth", "segmentation")
        weights, expected = found.weights, other.weights
    assert transfer(tiny.table, weights, manifest.table).tobytes() == expected.tobytes()
    head = tiny.table.parts["head.normals"]
    assert weights[head].tobytes() == tiny.weights[head].tobytes()
    measured = worker.evaluate(tiny.downloaded(tiny.plan(data_split="test"), tiny.manifest, store, weights), Reports())
    assert measured.loss.keys() == measured.examples.keys() == {"depth", "segmentation"}


def test_worker_without_labels_of_any_task_refuses(tiny, data_copy, tmp_path, store):
    without(data_copy, "normals")
    worker = LocalWorker(data_copy, tmp_path / "state")
    manifest, weights = tiny.group("normals")
    for work in (
        lambda: worker.train(tiny.downloaded(tiny.plan(), manifest, store, weights), Reports()),
        lambda: worker.evaluate(tiny.downloaded(tiny.plan(data_split="test"), manifest, store, weights), Reports()),
    ):
        with pytest.raises(WorkRefused, match="no labels for normals; it has depth, segmentation") as caught:
            work()
        assert caught.value.reason == "no_data"


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr": 0.003},
        {"weighting": GradNormWeighting()},
        {"weighting": UncertaintyWeighting(), "clip_norm": 0.5},
    ],
)
def test_rounds_with_options_go_on_and_can_be_done_again(tiny, tmp_path, store, options):
    """Moments and learnt weights are kept: two rounds are two epochs on their own, also when the second is repeated."""
    worker, model, weighting_state = LocalWorker(tiny.data, tmp_path / "state"), tiny.model(), None
    weights, state = weights_of(tiny), np.zeros(2 * len(tiny.weights) + 1, np.float32)
    state = state if "optimizer" in options else tiny.velocity()
    for number in (1, 2, 2):
        training = tiny.change(epochs=1, first_epoch=number - 1, **options)
        result = worker.train(
            tiny.downloaded(tiny.plan(round_number=number, training=training), tiny.manifest, store, weights), Reports()
        )
        if number == 1:
            weights = result.weights
    for epoch in range(2):
        settings = tiny.change(epochs=1, first_epoch=epoch, **options)
        weighting_state = (
            Trainer(model, tiny.dataset.train).train(settings, state, weighting_state=weighting_state).weighting_state
        )
    assert result.weights.tobytes() == model.weights.tobytes()


def test_worker_begins_a_phase_without_momentum_of_another(tiny, worker, store):
    training = tiny.change(epochs=1)
    plans = [tiny.plan(round_number=number, training=training) for number in (1, 2)]
    first, second = (
        worker.train(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), Reports()) for plan in plans
    )
    assert first.weights.tobytes() == second.weights.tobytes()


def test_worker_that_missed_rounds_keeps_what_its_weighting_has_learnt(tiny, worker, store):
    training = tiny.change(epochs=1, weighting=GradNormWeighting())
    first = worker.train(
        tiny.downloaded(tiny.plan(round_number=1, training=training), tiny.manifest, store, weights_of(tiny)), Reports()
    )
    later = tiny.change(epochs=1, first_epoch=8, weighting=GradNormWeighting())
    found = worker.train(
        tiny.downloaded(tiny.plan(round_number=9, training=later), tiny.manifest, store, first.weights), Reports()
    )
    model = tiny.model()
    weighting_state = Trainer(model, tiny.dataset.train).train(training, tiny.velocity()).weighting_state
    Trainer(model, tiny.dataset.train).train(later, tiny.velocity(), weighting_state=weighting_state)
    assert found.weights.tobytes() == model.weights.tobytes()


def test_worker_refuses_images_of_another_size(tiny, data_copy, tmp_path, store):
    for split in ("train", "val", "test"):
        path = data_copy / split / "image.npy"
        images = np.load(path)[:, :, :8]
        path.unlink()
        np.save(path, images)
    worker = LocalWorker(data_copy, tmp_path / "state")
    with pytest.raises(WorkRefused, match=r"\(3, 8, 16\)"):
        worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
    with pytest.raises(WorkRefused, match=r"\(3, 8, 16\)"):
        worker.evaluate(
            tiny.downloaded(tiny.plan(data_split="test"), tiny.manifest, store, weights_of(tiny)), Reports()
        )


@pytest.mark.parametrize("split", ["train", "val"])
def test_worker_refuses_labels_that_a_loss_is_not_for(tiny, data_copy, tmp_path, store, split):
    path = data_copy / split / "segmentation.npy"
    classes = np.load(path)
    classes[3, 2, 1] = 9
    path.unlink()
    np.save(path, classes)
    contracts = {"segmentation": LabelContract(classes=4, ignored=(0,))}
    tasks = tuple(msgspec.structs.replace(task, labels=contracts.get(task.name)) for task in tiny.manifest.tasks)
    manifest = msgspec.structs.replace(tiny.manifest, tasks=tasks)
    worker = LocalWorker(data_copy, tmp_path / "state")
    with pytest.raises(WorkRefused, match=f"{split}/segmentation.npy, sample 3: 9 is none of the 4 classes") as caught:
        worker.train(tiny.downloaded(tiny.plan(), manifest, store, weights_of(tiny)), Reports())
    assert caught.value.reason == "no_data"


def test_worker_refuses_an_image_without_numbers_and_samples_that_cannot_be_varied(tiny, data_copy, tmp_path, store):
    worker = LocalWorker(data_copy, tmp_path / "state")
    plan = tiny.plan(training=tiny.change(epochs=1, crop=8))
    with pytest.raises(WorkRefused, match="8 pixels are half of the image or more") as caught:
        worker.train(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), Reports())
    assert caught.value.reason == "bundle"
    for split in ("train", "val", "test"):
        path = data_copy / split / "image.npy"
        images = np.load(path).astype(np.float32) / 255
        images[2, 0, 0, 0] = np.nan if split == "train" else 0.5
        path.unlink()
        np.save(path, images)
    worker = LocalWorker(data_copy, tmp_path / "state")
    with pytest.raises(WorkRefused, match=r"train/image\.npy, sample 2: it has the value nan") as caught:
        worker.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
    assert caught.value.reason == "no_data"


@pytest.mark.parametrize(("work", "graph"), [("train", "encoder.0.forward"), ("evaluate", "encoder.predict")])
@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        (lambda _: b"not a graph", "bundle", "graph {graph} is not an ONNX graph"),
        (lambda content: content.replace(b"Conv", b"Loop"), "bundle", "graph {graph} is refused: operator 'Loop'"),
        (lambda content: content.replace(b"dilations", b"dilationz"), "error", "cannot be loaded"),
    ],
)
def test_worker_refuses_a_graph_that_it_cannot_use(change, reason, text, tiny, worker, store, work, graph):
    path = store.path(tiny.manifest.graphs[graph].digest)
    path.write_bytes(change(path.read_bytes()))
    plan = tiny.plan() if work == "train" else tiny.plan(data_split="test")
    with pytest.raises(WorkRefused, match=text.format(graph=graph)) as caught:
        getattr(worker, work)(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), Reports())
    assert caught.value.reason == reason


def test_worker_stops_where_the_work_is_no_longer_wanted(tiny, worker, store):
    def report(stage, done, _):
        if (stage, done) == ("train", 2):
            raise WorkCancelled

    plan = tiny.plan()
    with pytest.raises(WorkCancelled):
        worker.train(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), report)
    # What was cut short left nothing behind.
    result = worker.train(tiny.downloaded(plan, tiny.manifest, store, weights_of(tiny)), Reports())
    model = tiny.model()
    Trainer(model, tiny.dataset.train).train(plan.training, tiny.velocity())
    assert result.weights.tobytes() == model.weights.tobytes()


@pytest.mark.skipif(is_training_build(), reason="onnxruntime-training is what is installed")
def test_worker_that_requires_training_artifacts_needs_onnxruntime_training(tiny, tmp_path):
    with pytest.raises(WorkerUnusable, match="needs onnxruntime-training"):
        LocalWorker(tiny.data, tmp_path / "state", ort_training="require")
    assert LocalWorker(tiny.data, tmp_path / "other").hello().ort_training == "off"


@pytest.mark.skipif(is_training_build(), reason="onnxruntime-training is what is installed")
def test_worker_does_without_onnxruntime_training_where_it_is_not_installed(tiny, tmp_path, store):
    worker = LocalWorker(tiny.data, tmp_path / "state", ort_training="auto")
    assert worker.hello().ort_training == "off"
    portable = LocalWorker(tiny.data, tmp_path / "other")
    found = [
        w.train(tiny.downloaded(tiny.plan(), tiny.manifest, store, weights_of(tiny)), Reports())
        for w in (worker, portable)
    ]
    assert found[0].weights.tobytes() == found[1].weights.tobytes()
