import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime.datasets.dataset import Dataset, DatasetInvalid, convert
from edge_runtime.datasets.fit import check_fits
from edge_runtime.training.optimizer import make_optimizer
from edge_runtime.training.schedule import order
from edge_runtime.training.trainer import Trainer, evaluate, load
from edge_runtime.wire.tensors import transfer
from edge_runtime.wire.training import FixedWeighting, GradNormWeighting, UncertaintyWeighting

ROOT = Path(__file__).parents[3]


def trained(tiny, settings, *tasks):
    model = tiny.model(*tasks)
    state = np.zeros(make_optimizer(settings).table(model.table.parameters).size, np.float32)
    result = Trainer(model, tiny.dataset.train).train(settings, state)
    return model, state, result


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
    assert result.examples == dict.fromkeys(model.tasks, 10)
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


def test_varied_samples_are_the_same_each_time_and_where_training_goes_on(tiny):
    settings = tiny.change(flip=0.5, crop=3, jitter=0.2)
    plain, whole, again = (trained(tiny, one)[0].weights for one in (tiny.settings, settings, settings))
    assert digest(whole) == digest(again) != digest(plain)
    model, velocity, saved = tiny.model(), tiny.velocity(), {}

    def save(progress):
        saved[progress().steps] = progress(), model.weights.copy(), velocity.copy()

    Trainer(model, tiny.dataset.train).train(settings, velocity, save=save)
    progress, weights, velocity = saved[4]
    model.weights[:] = weights
    Trainer(model, tiny.dataset.train).train(settings, velocity, after=progress)
    assert digest(model.weights) == digest(whole)


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


@pytest.mark.process
def test_trainer_with_one_seed_gives_the_same_bits_in_two_processes(tiny):
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import hashlib, importlib.util, numpy
spec = importlib.util.spec_from_file_location("fixtures", {str(Path(__file__).parents[1] / "conftest.py")!r})
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


@pytest.mark.slow
def test_trainer_with_another_seed_gives_other_weights(tiny):
    assert digest(trained(tiny, tiny.settings)[0].weights) != digest(trained(tiny, tiny.change(seed=4))[0].weights)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 5])
def test_probing_leaves_training_bit_for_bit_alone(tiny, every):
    plain, plain_velocity, plain_result = trained(tiny, tiny.settings)
    probed, velocity, result = trained(tiny, tiny.change(probe_every=every))
    assert digest(probed.weights, velocity) == digest(plain.weights, plain_velocity)
    assert result.loss == plain_result.loss
    assert result.affinities.result().count == -(-6 // every)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "encoder", "representation"])
@pytest.mark.parametrize("options", [{"optimizer": "adamw", "clip_norm": 0.5}, {"weighting": GradNormWeighting()}])
def test_probing_by_any_method_leaves_any_training_bit_for_bit_alone(tiny, method, options):
    plain, state, result = trained(tiny, tiny.change(**options))
    probed, probed_state, probed_result = trained(tiny, tiny.change(**options, probe_every=2, probe=method))
    assert digest(probed.weights, probed_state) == digest(plain.weights, state)
    assert (probed_result.loss, probed_result.weighting_state) == (result.loss, result.weighting_state)
    assert probed_result.affinities.result().count == 3


@pytest.mark.slow
def test_probes_are_counted_through_the_rounds_of_a_group(tiny):
    """Every 4th of 3 batches a round: those at 0, 4 and 8 of all, whichever round they fall into."""
    counts = []
    for epoch in range(4):
        result = trained(tiny, tiny.change(epochs=1, first_epoch=epoch, probe_every=4))[2].affinities.result()
        counts.append(result.count if result else 0)
    assert counts == [1, 1, 1, 0]


def test_probes_say_when_they_begin_and_end(tiny):
    found = []
    model = tiny.model()
    Trainer(model, tiny.dataset.train).train(
        tiny.change(epochs=1, probe_every=2),
        tiny.velocity(),
        report=lambda *numbers: found.append(numbers),
        enter=found.append,
    )
    assert found == ["probe", "train", (1, 3), (2, 3), "probe", "train", (3, 3)]


NEUTRAL = [
    {"weighting": FixedWeighting(weights={"depth": 1.0, "normals": 1.0})},
    {"clip_norm": 1e9},
    {"beta2": 0.5, "epsilon": 0.1, "probe": "encoder"},
]


@pytest.mark.parametrize("options", NEUTRAL)
def test_options_that_change_nothing_change_no_bit(tiny, options):
    plain, velocity, result = trained(tiny, tiny.settings)
    other, other_velocity, other_result = trained(tiny, tiny.change(**options))
    assert digest(other.weights, other_velocity) == digest(plain.weights, velocity)
    assert other_result.loss == result.loss


OPTIONS = [
    {"optimizer": "adamw", "lr": 0.003},
    {"clip_norm": 0.1},
    {"proximal_mu": 1.0},
    {"weighting": FixedWeighting(weights={"depth": 3.0})},
    {"weighting": GradNormWeighting(lr=0.1)},
    {"weighting": UncertaintyWeighting(lr=0.1)},
    {"gradient_combination": "pcgrad"},
    {"gradient_combination": "cagrad"},
    {"optimizer": "adamw", "lr": 0.003, "clip_norm": 0.1, "weighting": GradNormWeighting()},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_option_goes_on_over_rounds_as_if_it_had_not_stopped(tiny, options):
    """Two epochs are two rounds of one, but for FedProx, which holds to what each round began with."""
    settings = tiny.change(**options)
    whole = trained(tiny, settings)
    assert digest(whole[0].weights) != digest(trained(tiny, tiny.settings)[0].weights)
    model, state, weighting_state = tiny.model(), np.zeros_like(whole[1]), None
    for epoch in range(2):
        one = msgspec.structs.replace(settings, epochs=1, first_epoch=epoch)
        weighting_state = (
            Trainer(model, tiny.dataset.train).train(one, state, weighting_state=weighting_state).weighting_state
        )
    is_same = digest(model.weights, state) == digest(whole[0].weights, whole[1])
    assert is_same == ("proximal_mu" not in options)
    assert weighting_state == whole[2].weighting_state or "proximal_mu" in options
    assert np.isfinite(model.weights).all()


def test_trainer_with_options_is_their_composition(tiny):
    """One batch by hand: gradient of the weighted sum, proximal term, clipping to the norm, AdamW's step."""
    options = {"optimizer": "adamw", "clip_norm": 0.05, "weighting": FixedWeighting(weights={"normals": 2.0})}
    settings = tiny.change(epochs=1, batch=10, momentum=0.5, proximal_mu=0.3, **options)
    found, state, _ = trained(tiny, settings)
    model = tiny.model()
    chosen = order(settings.seed, 0, 10).tolist()
    model.learn(*load(model, tiny.dataset.train, chosen), np.array([1.0, 2.0, 1.0]))
    gradient = model.gradient.astype(np.float64)  # the first step: there is no distance to what was received yet
    gradient *= 0.05 / np.linalg.norm(gradient)
    size = len(gradient)
    np.testing.assert_allclose(state[:size], 0.5 * gradient, rtol=1e-4, atol=1e-9)
    step = gradient / (np.abs(gradient) + 1e-8) + 0.01 * tiny.weights[:size]
    np.testing.assert_allclose(found.weights[:size], tiny.weights[:size] - 0.02 * step, atol=1e-4)


def test_proximal_term_holds_to_what_was_received(tiny):
    far, near = (trained(tiny, tiny.change(proximal_mu=mu))[0].weights - tiny.weights for mu in (0.0, 10.0))
    assert np.linalg.norm(near) < 0.7 * np.linalg.norm(far)


def test_clipping_bounds_the_step(tiny):
    settings = tiny.change(epochs=1, batch=10, momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    model, _, _ = trained(tiny, settings)
    assert np.linalg.norm(model.weights - tiny.weights) == pytest.approx(settings.lr * 0.01, rel=1e-2)


@pytest.fixture
def mixed(data_copy):
    """Ten samples, of which 3 have no label of depth; another device's normals and classes are all there."""
    for split in ("train", "val"):
        path = data_copy / split / "depth.npy"
        depth = np.load(path)
        depth[[0, 3, 4]] = np.nan
        path.unlink()
        np.save(path, depth)
    return Dataset.open(data_copy)


def test_samples_without_a_label_count_for_nothing(tiny, mixed):
    """A masked loss is the same loss; here it is told apart by samples, so that means and examples are of 7."""
    model, velocity = tiny.model(), tiny.velocity()
    settings = tiny.change(epochs=1, batch=10, probe_every=1)
    result = Trainer(model, mixed.train).train(settings, velocity)
    assert mixed.train.examples(model.tasks) == {"depth": 7, "normals": 10, "segmentation": 10}
    other = tiny.model()
    inputs, labels = mixed.train.batch(order(settings.seed, 0, 10), other.tasks)
    types = {task.name: task.target.dtype for task in other.manifest.tasks}
    targets = {task: convert(labels[task], types[task], mixed.train.factors.get(task)) for task in other.tasks}
    losses = other.learn({"x": inputs["image"]}, targets)
    assert result.loss == pytest.approx(losses, rel=1e-5)
    np.testing.assert_allclose(velocity, other.gradient + 0.01 * tiny.weights, atol=1e-5)
    assert result.affinities.result().count == 1


def test_probe_waits_for_a_batch_with_labels_of_every_task(tiny, mixed):
    """Samples 0, 3 and 4 have no depth: batches of one that fall on them are passed over, and so are the losses."""
    settings = tiny.change(epochs=1, batch=1, probe_every=10)
    result = Trainer(tiny.model(), mixed.train).train(settings, tiny.velocity())
    assert result.affinities.result().count == 1
    seeds = [seed for seed in range(20) if order(seed, 0, 10)[0] in (0, 3, 4)]
    result = Trainer(tiny.model(), mixed.train).train(
        tiny.change(batch=1, probe_every=10, seed=seeds[0]), tiny.velocity()
    )
    assert result.affinities.result().count == 2
    assert set(result.loss) == set(tiny.manifest.task_names)
    assert np.isfinite(list(result.loss.values())).all()


def test_probe_waits_where_the_loss_itself_ignores_every_label(tiny, data_copy):
    """Class 0 is no class: samples 0 to 8 have a loss of segmentation of zero, so the probe falls on the ninth."""
    path = data_copy / "train" / "segmentation.npy"
    classes = np.load(path)
    path.unlink()
    classes[:9] = 0
    np.save(path, classes)
    found = []
    Trainer(tiny.model(), Dataset.open(data_copy).train).train(
        tiny.change(epochs=1, batch=1, probe_every=10),
        tiny.velocity(),
        report=lambda done, _: found.append(done),
        enter=found.append,
    )
    place = order(tiny.settings.seed, 0, 10).tolist().index(9)
    assert found.index("probe") == place
    assert found.count("probe") == 1


def test_evaluation_is_over_labelled_samples(tiny, mixed):
    model = tiny.model()
    whole, one = evaluate(model, mixed.val, 5), evaluate(model, mixed.val, 1)
    assert one == pytest.approx(whole, rel=0.1)
    x, targets = load(model, mixed.val, [1, 2])
    assert whole["depth"] == pytest.approx(model.evaluate("depth", model.encode(x), targets["depth"]), rel=1e-5)


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


def test_training_that_is_stopped_is_a_share_of_the_whole_and_counts_for_its_examples(tiny):
    model, state, asked = trained(tiny, tiny.change(share=0.5))
    assert asked.examples == dict.fromkeys(model.tasks, 5)  # ten in two epochs
    done = []
    stopped, state_then = tiny.model(), tiny.velocity()
    result = Trainer(stopped, tiny.dataset.train).train(
        tiny.settings,
        state_then,
        report=lambda steps, total: done.append((steps, total)),
        is_stopped=lambda: len(done) == 3,
    )
    assert done == [(1, 6), (2, 6), (3, 6)]
    assert (result.examples, result.loss) == (asked.examples, asked.loss)
    assert digest(stopped.weights, state_then) == digest(model.weights, state)
    _, _, least = trained(tiny, tiny.change(share=1e-9))
    assert least.examples == dict.fromkeys(model.tasks, 2)  # a step of four samples


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
        ("image", lambda a: a[:, :, :8], r"image.npy: samples are \(3, 8, 16\)"),
        ("image", lambda a: a[:, :1], r"image.npy: samples are \(1, 16, 16\)"),
        ("depth", lambda _: None, "no labels for depth"),
        ("depth", lambda a: a[:, 0], r"depth.npy: labels are \(16, 16\), .*save them in that shape"),
        ("segmentation", lambda a: a.astype(np.float32), r"segmentation\.npy: labels of type float32 cannot be used"),
        (
            "depth",
            lambda a: np.full(a.shape, 3, np.int32),
            r"train/depth\.npy, sample 0: integers stand for",
        ),
    ],
)
def test_data_that_does_not_fit_is_named(tiny, data_copy, task, change, text):
    with pytest.raises(DatasetInvalid, match=text):
        check_fits(tiny.manifest, damaged(data_copy, task, change))
