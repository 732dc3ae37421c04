import dataclasses

import msgspec
import numpy as np
import pytest

from edge_runtime.training.metrics import metric_of
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.trainer import evaluate, load


def measured(model, split, batch):
    metrics = TaskMetrics(model)
    return evaluate(model, split, batch, metrics=metrics), metrics.result()


def test_task_metrics_are_those_of_pytorchs_predictions(tiny):
    model, test = tiny.model(), tiny.dataset.test
    _, targets = load(model, test, range(len(test)))
    expected = {}
    for task in tiny.manifest.tasks:
        metric = metric_of(task)
        metric.add(tiny.reference[f"prediction.{task.name}"], targets[task.name])
        expected[task.name] = metric.result()
    assert set(expected) == {"depth", "normals", "segmentation"}
    for batch in (1, 2, 16):
        _, found = measured(model, test, batch)
        assert found == pytest.approx(expected, rel=1e-4)


def test_task_metrics_leave_the_losses_bit_for_bit_alone(tiny):
    plain = evaluate(tiny.model(), tiny.dataset.test, 2)
    losses, found = measured(tiny.model(), tiny.dataset.test, 2)
    assert losses == plain
    assert measured(tiny.model(), tiny.dataset.test, 2) == (losses, found)


def test_task_metrics_of_labelled_samples_alone(tiny):
    split = tiny.dataset.val
    depth = np.array(split.labels["depth"])
    depth[[0, 3]] = np.nan
    some = dataclasses.replace(split, labels={**split.labels, "depth": depth}, _scans={})
    kept = [1, 2, 4]
    fewer = dataclasses.replace(
        split,
        inputs={"image": split.inputs["image"][kept]},
        labels={task: array[kept] for task, array in split.labels.items()},
        _scans={},
    )
    model = tiny.model()
    assert measured(model, some, 5)[1]["depth"] == pytest.approx(measured(model, fewer, 3)[1]["depth"], rel=1e-6)


def test_task_metrics_leave_out_a_task_without_label_or_metric(tiny):
    split = tiny.dataset.val
    empty = np.full_like(split.labels["depth"], np.nan)
    model = tiny.model()
    model.manifest = msgspec.structs.replace(
        model.manifest,
        tasks=tuple(
            msgspec.structs.replace(t, metric=None if t.name == "normals" else t.metric) for t in model.manifest.tasks
        ),
    )
    _, found = measured(model, dataclasses.replace(split, labels={**split.labels, "depth": empty}, _scans={}), 5)
    assert set(found) == {"segmentation"}


def test_task_metrics_hold_few_predictions_at_once(tiny):
    """Where a batch's predictions are many bytes they are made in parts."""
    model, test = tiny.model(), tiny.dataset.test
    x, targets = load(model, test, range(len(test)))
    taken = []

    class Recorder:
        manifest = msgspec.structs.replace(
            tiny.manifest,
            tasks=tuple(
                msgspec.structs.replace(
                    task,
                    target=msgspec.structs.replace(task.target, shape=(1, 1024, 1024)),
                    prediction=msgspec.structs.replace(task.prediction, shape=(1, 1024, 1024)),
                )
                for task in tiny.manifest.tasks
                if task.name == "depth"
            ),
        )

        def predict(self, task, z):
            taken.append(len(z[0]))
            return model.predict(task, z)

    metrics = TaskMetrics(Recorder())
    metrics.add(model.encode(x), targets)
    assert taken == [1] * len(test)
    whole = TaskMetrics(model)
    whole.add(model.encode(x), targets)
    assert metrics.result()["depth"] == pytest.approx(whole.result()["depth"], rel=1e-5)
