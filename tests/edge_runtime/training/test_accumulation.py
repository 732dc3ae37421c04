import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training.accumulation import micro_batches
from edge_runtime.training.model import Labelled
from edge_runtime.training.optimizer import AdamW, Sgd
from edge_runtime.training.trainer import Trainer
from edge_runtime.wire.training import GradNormWeighting


@given(st.integers(1, 9), st.integers(1, 10), st.lists(st.integers(0, 8), unique=True, max_size=9).map(sorted))
def test_micro_batches_are_the_batch_in_parts(samples, size, rows):
    rows = np.array([row for row in rows if row < samples], np.int64)
    x = np.arange(samples, dtype=np.float32)[:, None]
    targets = {"all": x * 2, "some": Labelled(rows, rows * 10)}
    whole = {"x": x, "x.tokens": np.arange(samples)}
    parts = [(part["x"], some, share) for part, some, share in micro_batches(whole, targets, size)]
    assert all((part["x.tokens"] == part["x"][:, 0]).all() for part, _, _ in micro_batches(whole, targets, size))
    assert all(0 < len(part) <= size for part, _, _ in parts)
    np.testing.assert_array_equal(np.concatenate([part for part, _, _ in parts]), x)
    np.testing.assert_array_equal(np.concatenate([some["all"] for _, some, _ in parts]), x * 2)
    found = [(part[some["some"].rows, 0], some["some"].target) for part, some, _ in parts]
    np.testing.assert_array_equal(np.concatenate([values for values, _ in found]), rows)
    np.testing.assert_array_equal(np.concatenate([target for _, target in found]), rows * 10)
    shares = np.array([share for _, _, share in parts])
    np.testing.assert_allclose(shares.sum(0), [1, 1 if len(rows) else 0])


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [None, GradNormWeighting()])
def test_training_in_micro_batches_is_training(tiny, weighting):
    """Of tasks with as many labels in each sample."""
    settings = tiny.change(epochs=1, weighting=weighting, clip_norm=1.0)
    found = []
    for size in (None, 4, 3, 1):
        model = tiny.model("depth", "normals")
        trained = Trainer(model, tiny.dataset.train, size).train(settings, np.zeros_like(model.gradient))
        found.append((model.weights, list(trained.loss.values()), trained.weighting_state))
    assert found[1][0].tobytes() == found[0][0].tobytes()
    for weights, losses, weighting_state in found[2:]:
        np.testing.assert_allclose(weights, found[0][0], atol=2e-5)
        np.testing.assert_allclose(losses, found[0][1], rtol=1e-4)
        if weighting:
            np.testing.assert_allclose(
                list(weighting_state.values.values()), list(found[0][2].values.values()), rtol=1e-3
            )


def test_probe_is_of_one_micro_batch(tiny):
    model = tiny.model()
    trained = Trainer(model, tiny.dataset.train, 2).train(tiny.change(probe_every=1), np.zeros_like(model.gradient))
    assert trained.affinities.result().count == 6


@pytest.mark.parametrize(
    "optimizer",
    [
        Sgd(lr=0.1, momentum=0.9, weight_decay=0.1),
        AdamW(lr=0.1, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.1),
    ],
)
def test_optimizer_leaves_what_is_not_trained(optimizer):
    random = np.random.default_rng(0)
    weights, gradient = (random.standard_normal(10).astype(np.float32) for _ in range(2))
    state = np.zeros(10 if isinstance(optimizer, Sgd) else 21, np.float32)
    all_weights, all_state = weights.copy(), state.copy()
    optimizer.step(all_weights, gradient.copy(), all_state)
    some, some_state = weights.copy(), state.copy()
    optimizer.step(some, gradient.copy(), some_state, (slice(0, 3), slice(5, 10)))
    np.testing.assert_array_equal(some[3:5], weights[3:5])
    np.testing.assert_array_equal(some[:3], all_weights[:3])
    np.testing.assert_array_equal(some[5:], all_weights[5:])
    assert not some_state[3:5].any()
    np.testing.assert_array_equal(some_state[5:10], all_state[5:10])


def test_frozen_stage_is_not_trained_and_the_rest_is(tiny):
    from edge_runtime.training.engine import Engine
    from edge_runtime.training.graph_cache import GraphCache
    from edge_runtime.training.model import Model
    from edge_runtime.wire import bundle_folder

    def trained(frozen):
        graphs = GraphCache(Engine()).of(tiny.manifest, lambda name, _: bundle_folder.graph_path(tiny.folder, name))
        model = Model(tiny.manifest, graphs, tiny.weights, frozen=frozen)
        Trainer(model, tiny.dataset.train).train(tiny.change(epochs=1, batch=10), np.zeros_like(model.gradient))
        return model.table.views(model.weights)

    assert len(tiny.manifest.stages) > 1
    first = {f"encoder.{name}" for name in tiny.manifest.stages[0].parameters}
    assert first
    before, whole, some = tiny.table.views(np.array(tiny.weights)), trained(0), trained(1)
    for name, view in before.items():
        if name in first:
            np.testing.assert_array_equal(some[name], view)
            assert (whole[name] != view).any()
        else:  # one step, from the same weights
            np.testing.assert_allclose(some[name], whole[name], atol=1e-6)


def test_encoder_that_is_frozen_whole_is_not_probed(tiny):
    from edge_runtime.training.engine import Engine
    from edge_runtime.training.graph_cache import GraphCache
    from edge_runtime.training.model import Model
    from edge_runtime.wire import bundle_folder

    def affinity(frozen):
        graphs = GraphCache(Engine()).of(tiny.manifest, lambda name, _: bundle_folder.graph_path(tiny.folder, name))
        model = Model(tiny.manifest, graphs, tiny.weights, frozen=frozen)
        settings = tiny.change(epochs=1, batch=5, probe_every=1)
        trained = Trainer(model, tiny.dataset.train).train(settings, np.zeros_like(model.gradient))
        return trained.affinities.result()

    stages = len(tiny.manifest.stages)
    assert affinity(stages) is None
    assert affinity(stages - 1).count == 2
