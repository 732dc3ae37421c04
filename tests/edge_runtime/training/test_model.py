import numpy as np
import pytest

from edge_runtime.training.engine import Engine, EngineError
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Labelled, Model
from edge_runtime.training.trainer import load
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.errors import BundleInvalid, TensorsInvalid


def test_model_copies_the_weights_and_binds_the_graphs_to_its_copy(tiny):
    model = tiny.model()
    x, _ = load(model, tiny.dataset.train, [0, 1])
    (before,) = model.forward(x).z
    model.weights *= 2
    assert (model.forward(x).z[0] != before).any()
    np.testing.assert_array_equal(model.weights, 2 * tiny.weights)
    with pytest.raises(TensorsInvalid):
        Model(tiny.manifest, lambda _: None, tiny.weights[:-1])


def test_model_represents_with_other_encoder_parameters_as_if_they_were_its_own(tiny):
    model, other = tiny.model(), tiny.model()
    x, _ = load(model, tiny.dataset.train, [3])
    encoder = model.weights[model.encoder] * np.float32(1.5)
    other.weights[other.encoder] = encoder
    np.testing.assert_array_equal(model.look_ahead(model.forward(x), encoder), other.forward(x).z)


def test_model_writes_each_gradient_at_its_own_place(tiny):
    model = tiny.model()
    x, targets = load(model, tiny.dataset.train, range(4))
    done = model.forward(x)
    dz = (np.empty_like(done.z[0]),)
    model.step("normals", done.z, targets["normals"], dz)
    touched = {part for part, where in model.table.parts.items() if model.gradient[where].any()}
    assert touched == {"head.normals"}
    gradient = model.backward(done, dz)
    assert np.shares_memory(gradient, model.gradient)
    assert gradient.any()


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10])
def test_model_takes_any_batch(tiny, batch):
    """The mean over a batch is the mean over its samples, of a loss with as many labels in each."""
    model = tiny.model()
    x, targets = load(model, tiny.dataset.train, range(batch))
    z = model.forward(x).z
    dz = (np.empty_like(z[0]),)
    loss = model.step("normals", z, targets["normals"], dz)
    together = model.gradient.copy()
    assert loss == pytest.approx(model.loss("normals", z, targets["normals"]), rel=1e-6)
    losses, summed, one = [], np.zeros_like(together), (np.empty_like(z[0][:1]),)
    for i in range(batch):
        losses.append(model.step("normals", (z[0][i : i + 1],), targets["normals"][i : i + 1], one))
        np.testing.assert_allclose(one[0][0] / batch, dz[0][i], atol=1e-6)
        summed += model.gradient
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_allclose(together, summed / batch, atol=1e-5)


def test_model_predicts_what_pytorch_predicts(tiny):
    model = tiny.model()
    x, _ = load(model, tiny.dataset.test, range(3))
    z = model.encode(x)
    for task in model.tasks:
        np.testing.assert_allclose(
            model.predict(task, z)["prediction"], tiny.reference[f"prediction.{task}"], atol=1e-5
        )


def test_model_says_what_does_not_fit_a_graph(tiny):
    model = tiny.model()
    with pytest.raises(EngineError, match="encoder.0.forward"):
        model.forward({"x": np.zeros((2, 3, 16, 15), np.float32)})
    with pytest.raises(EngineError, match="head.depth.loss"):
        model.loss("depth", (np.zeros((2, 8, 4, 4), np.float32),), np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(EngineError, match="head.depth.loss"):
        model.loss("depth", (np.zeros((2, 8, 4, 4), np.float32),), np.zeros((2, 1, 16, 16), np.int64))


class Counting:
    """An engine that counts the graphs it loads."""

    def __init__(self):
        self.loaded = []
        self._engine = Engine()

    def load(self, path):
        self.loaded.append(path.name)
        return self._engine.load(path)


def test_graph_cache_loads_a_graph_once_for_all_groups_and_drops_unused_ones(tiny):
    engine = Counting()
    cache = GraphCache(engine)
    locate = lambda name, _: bundle_folder.graph_path(tiny.folder, name)  # noqa: E731
    whole = cache.of(tiny.manifest, locate)
    assert engine.loaded == []
    assert whole("encoder.0.forward") is whole("encoder.0.forward")
    whole("head.depth.loss")
    group = cache.of(tiny.group("normals")[0], locate)
    assert group("encoder.0.forward") is whole("encoder.0.forward")
    assert engine.loaded == ["encoder.0.forward.onnx", "head.depth.loss.onnx"]
    whole("head.depth.loss")
    assert engine.loaded.count("head.depth.loss.onnx") == 2


def test_graph_cache_loads_nothing_of_a_bundle_with_a_graph_that_none_may_have(tiny, bundle_copy):
    path = bundle_folder.graph_path(bundle_copy, "encoder.0.backward")
    path.write_bytes(path.read_bytes().replace(b"Conv", b"Loop"))
    engine = Counting()
    cache = GraphCache(engine)
    with pytest.raises(BundleInvalid, match=r"graph encoder.0.backward is refused: operator 'Loop'"):
        cache.of(tiny.manifest, lambda name, _: bundle_folder.graph_path(bundle_copy, name))
    assert engine.loaded == []


def test_model_of_some_labelled_rows_is_the_head_on_those_rows(tiny):
    """A masked loss over all rows, NaN where there is no label, is the same loss over the labelled ones."""
    model = tiny.model()
    x, targets = load(model, tiny.dataset.train, range(4))
    z = model.forward(x).z
    gaps = targets["depth"].copy()
    gaps[[0, 2]] = np.nan
    masked, some = (np.empty_like(z[0]),), (np.full_like(z[0], 7),)
    loss = model.step("depth", z, gaps, masked)
    gradient = model.gradient.copy()
    labelled = Labelled(np.array([1, 3]), gaps[[1, 3]])
    assert model.step("depth", z, labelled, some) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(some[0], masked[0], atol=1e-7)
    np.testing.assert_allclose(model.gradient, gradient, atol=1e-6)
    assert not some[0][[0, 2]].any()
    assert model.loss("depth", z, labelled) == pytest.approx(loss, rel=1e-6)
    assert model.evaluate("depth", z, labelled) == pytest.approx(loss, rel=1e-6)


def test_model_of_no_labelled_row_has_no_loss_and_no_gradient(tiny):
    model = tiny.model()
    x, targets = load(model, tiny.dataset.train, range(2))
    z = model.forward(x).z
    dz = (np.full_like(z[0], 7),)
    model.step("depth", z, targets["depth"], dz)
    nothing = Labelled(np.empty(0, np.int64), targets["depth"][:0])
    assert np.isnan(model.step("depth", z, nothing, dz))
    assert not dz[0].any()
    assert not model.gradient[model.table.parts["head.depth"]].any()
    assert np.isnan(model.loss("depth", z, nothing))
    assert np.isnan(model.evaluate("depth", z, nothing))


def test_model_weights_the_losses_in_every_gradient(tiny):
    model, found, shown = tiny.model(), {}, {}
    x, targets = load(model, tiny.dataset.train, range(4))
    for task in model.tasks:
        alone = tiny.model(task)
        alone.learn(x, {task: targets[task]})
        found[task] = alone.gradient[alone.encoder].copy(), alone.gradient[alone.encoder.stop :].copy()
    plain = model.learn(x, targets)
    weights = np.array([2.0, 0.0, 0.5])
    losses = model.learn(x, targets, weights, lambda task, loss, dz: shown.update({task: (loss, dz[0].copy())}))
    assert losses == plain
    summed = sum(w * found[task][0] for w, task in zip(weights, model.tasks, strict=True)) / np.sqrt(3)
    np.testing.assert_allclose(model.gradient[model.encoder], summed, atol=1e-6)
    for w, task in zip(weights, model.tasks, strict=True):
        part = model.gradient[model.table.parts[f"head.{task}"]]
        np.testing.assert_allclose(part, w * found[task][1], atol=1e-6)
        assert shown[task][0] == losses[task]
        assert shown[task][1].any()  # without the weight


def test_model_with_another_engine_hands_it_the_weights(tiny):
    given = []
    manifest, weights = tiny.group("depth", "normals")

    def step(x, targets, **more):
        given.append((x, more))
        return {"depth": 1.0}

    model = Model(manifest, lambda _: None, weights, step)
    x, targets = load(model, tiny.dataset.train, range(2))
    assert model.learn(x, targets, np.array([2.0, 1.0])) == {"depth": 1.0}
    assert given[0][0] is x
    more = given[0][1]
    assert more["loss_weights"].tolist() == [2.0, 1.0]
    assert more["weights"] is model.weights
    assert more["gradient"] is model.gradient
    assert more["next_state"].shape == model.weights.shape
    model.reseed(1, 2, 3)
    model.learn(x, targets)
    assert sorted(given[1][1]["seeds"]) == ["encoder", "head.depth", "head.normals"]
    assert given[1][1]["seeds"]["encoder"] != more["seeds"]["encoder"]
    assert given[1][1]["loss_weights"] is None
