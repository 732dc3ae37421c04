import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.datasets.dataset import Dataset, DatasetInvalid
from edge_runtime.training.trainer import Trainer, check_fits, evaluate
from edge_runtime.wire.tensors import transfer

ROOT = Path(__file__).parents[3]


def trained(tiny, settings, *tasks):
    model = tiny.model(*tasks)
    velocity = np.zeros_like(model.weights)
    result = Trainer(model, tiny.dataset.train).train(settings, velocity)
    return model, velocity, result


def digest(*vectors):
    return hashlib.sha256(b"".join(vector.tobytes() for vector in vectors)).hexdigest()


def test_trainer_is_pytorchs_sgd(tiny):
    model, _, result = trained(tiny, tiny.settings)
    reference = tiny.reference
    scale = np.abs(reference["weights"]).max()
    np.testing.assert_allclose(model.weights, reference["weights"], atol=1e-4 * scale)
    sizes = np.array([4, 4, 2, 4, 4, 2])[:, None]
    expected = (reference["losses"] * sizes).sum(axis=0) / sizes.sum()
    np.testing.assert_allclose([result.loss[task] for task in model.tasks], expected, rtol=1e-4)
    assert result.samples == 20
    assert result.affinities.result() is None


def test_trainer_step_by_step_is_pytorchs_sgd(tiny):
    """One batch at a time over a data set of that batch: the losses before each step, the last batch a small one."""
    reference = tiny.reference["losses"]
    model = tiny.model()
    velocity = tiny.velocity()
    for epoch in range(2):
        settings = tiny.change(epochs=1, first_epoch=epoch)
        loss = Trainer(model, tiny.dataset.train).train(settings, velocity).loss
        rows = reference[3 * epoch : 3 * epoch + 3]
        expected = (rows * np.array([4, 4, 2])[:, None]).sum(axis=0) / 10
        np.testing.assert_allclose([loss[task] for task in model.tasks], expected, rtol=1e-4)


def test_trainer_goes_on_from_momentum_as_if_it_had_not_stopped(tiny):
    whole, velocity, _ = trained(tiny, tiny.settings)
    model, kept = tiny.model(), tiny.velocity()
    for epoch in range(2):
        Trainer(model, tiny.dataset.train).train(tiny.change(epochs=1, first_epoch=epoch), kept)
    assert digest(model.weights, kept) == digest(whole.weights, velocity)


def test_evaluation_is_pytorchs(tiny):
    model = tiny.model()
    for batch in (1, 2, 5, 16):
        loss = evaluate(model, tiny.dataset.val, batch)
        for i, task in enumerate(model.tasks):
            # The masked loss of this data has as many labels in every image, so its batches weigh alike.
            tolerance = 0.1 if task == "segmentation" and batch < 5 else 1e-5
            assert loss[task] == pytest.approx(tiny.reference["val_before"][i], rel=tolerance)


def test_evaluation_reports_its_progress(tiny):
    found = []
    evaluate(tiny.model(), tiny.dataset.val, 2, report=lambda *numbers: found.append(numbers))
    assert found == [(2, 5), (4, 5), (5, 5)]


def test_trainer_with_one_seed_gives_the_same_bits_in_two_processes(tiny):
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
import hashlib, importlib.util, numpy
spec = importlib.util.spec_from_file_location("fixtures", {str(Path(__file__).with_name("conftest.py"))!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
from edge_runtime.training.trainer import Trainer
tiny = module.Tiny(); model = tiny.model(); velocity = tiny.velocity()
Trainer(model, tiny.dataset.train).train(tiny.settings, velocity)
print(hashlib.sha256(model.weights.tobytes() + velocity.tobytes()).hexdigest())
"""
    found = {
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=300).stdout
        for _ in range(2)
    }
    assert len(found) == 1
    model, velocity, _ = trained(tiny, tiny.settings)
    assert found == {digest(model.weights, velocity) + "\n"}


def test_trainer_with_another_seed_gives_other_weights(tiny):
    assert digest(trained(tiny, tiny.settings)[0].weights) != digest(trained(tiny, tiny.change(seed=4))[0].weights)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_probing_leaves_training_bit_for_bit_alone(tiny, every):
    plain, plain_velocity, plain_result = trained(tiny, tiny.settings)
    probed, velocity, result = trained(tiny, tiny.change(probe_every=every))
    assert digest(probed.weights, velocity) == digest(plain.weights, plain_velocity)
    assert result.loss == plain_result.loss
    assert result.affinities.result().count == -(-6 // every)


def test_trainer_of_a_group_knows_nothing_of_the_other_tasks(tiny):
    """Two tasks of three: the heads that stay begin as they were, and what is trained is the group's manifest."""
    model, _, result = trained(tiny, tiny.change(epochs=1), "depth", "normals")
    assert model.tasks == ("depth", "normals")
    assert tuple(result.loss) == ("depth", "normals")
    assert set(model.table.parts) == {"encoder", "head.depth", "head.normals"}
    start = transfer(tiny.table, tiny.weights, model.table)
    assert all((model.weights[part] != start[part]).any() for part in model.table.parts.values())


def test_trainer_of_one_task_does_not_scale_its_gradient(tiny):
    """One head: 1/√T is 1, so the encoder's step is that of the head's own gradient."""
    model, velocity, _ = trained(tiny, tiny.change(epochs=1, batch=10, momentum=0.0, weight_decay=0.0), "normals")
    start = transfer(tiny.table, tiny.weights, model.table)
    step = (start - model.weights) / np.float32(0.02)
    np.testing.assert_allclose(velocity, step, atol=1e-4)
    all_tasks, all_velocity, _ = trained(tiny, tiny.change(epochs=1, batch=10, momentum=0.0, weight_decay=0.0))
    head = tiny.table.parts["head.normals"], model.table.parts["head.normals"]
    np.testing.assert_allclose(all_velocity[head[0]], velocity[head[1]], atol=1e-6)
    alone = [
        trained(tiny, tiny.change(epochs=1, batch=10, momentum=0.0, weight_decay=0.0), t)[1] for t in all_tasks.tasks
    ]
    summed = sum(vector[: tiny.table.parts["encoder"].stop] for vector in alone) / np.sqrt(3)
    np.testing.assert_allclose(all_velocity[all_tasks.encoder], summed, atol=1e-5)


def test_trainer_reports_every_step_and_lets_what_it_raises_pass(tiny):
    model, found = tiny.model(), []
    Trainer(model, tiny.dataset.train).train(
        tiny.settings, tiny.velocity(), report=lambda *numbers: found.append(numbers)
    )
    assert found == [(done, 6) for done in range(1, 7)]

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        Trainer(model, tiny.dataset.train).train(tiny.settings, tiny.velocity(), report=stop)


def damaged(data, task, change):
    for split in ("train", "val", "test"):
        path = data / split / f"{task}.npy"
        array = change(np.load(path))
        path.unlink()
        if array is not None:
            np.save(path, array)
    return Dataset.open(data).train


@pytest.mark.parametrize(
    ("task", "change", "text"),
    [
        ("image", lambda a: a[:, :, :8], r"the images are \(3, 8, 16\)"),
        ("image", lambda a: a[:, :1], r"the images are \(1, 16, 16\)"),
        ("depth", lambda _: None, "no labels for depth"),
        ("depth", lambda a: a[:, 0], r"the labels of depth are \(16, 16\)"),
        ("segmentation", lambda a: a.astype(np.float32), "float32 cannot be used where a task wants int64"),
        ("depth", lambda a: np.zeros(a.shape, np.int32), "int32 cannot be used where a task wants float32"),
    ],
)
def test_data_that_does_not_fit_is_named(tiny, data_copy, task, change, text):
    with pytest.raises(DatasetInvalid, match=text):
        check_fits(tiny.manifest, damaged(data_copy, task, change))
