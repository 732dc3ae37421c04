"""Models with a stem: their graphs, and the encoder computed apart from stem and heads."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edge_runtime.training.encoder import LocalEncoder  # noqa: E402
from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.training.optimizer import Sgd  # noqa: E402
from edge_runtime.training.stem import Stem  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.tensors import pack  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.contract import check  # noqa: E402
from export.deploy import inference_model  # noqa: E402
from export.errors import ModelInvalid, OrtTrainingImpossible, ParityFailed  # noqa: E402
from export.models import vit  # noqa: E402
from export.ort_training.training_model import forward_graph  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation
NO_PARITY = wire.Parity(max_relative_error=0.0, worst="", compared=0)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return compile_model(vit.make(("depth", "kind"), width=16, heads=2, depth=2, size=16, patch=4), stages=2)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """A bundle's folder."""
    path = tmp_path_factory.mktemp("bundle")
    bundle_folder.write_folder(path, describe(small, "vit", NO_PARITY), pack(small.table, small.weights), small.graphs)
    return path


def graphs_of(folder, manifest):
    return GraphCache(Engine()).of(manifest, lambda name, _: bundle_folder.graph_path(folder, name))


class Piece(nn.Module):
    def __init__(self, function, *inner):
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(inner)

    def forward(self, x):
        return self.function(self, x)


def divided(make, **fields):
    """The small model with a stem before its encoder."""
    defaults = {"stem": nn.Conv2d(3, 6, 1), "encoder": nn.Conv2d(6, 4, 3, padding=1)}
    return make(**(defaults | fields))


def test_graphs_of_a_stem_are_in_the_manifest(small):
    manifest = wire.decode(wire.encode(describe(small, "vit", NO_PARITY)))
    assert manifest.embedding.shape == (16, 16)
    assert list(manifest.sources) == ["e"]
    assert manifest.stages[0].reads == ("e",)
    assert {name for name in manifest.graphs if name.startswith("stem.")} == {
        "stem.forward",
        "stem.backward",
        "stem.predict",
    }
    assert manifest.graphs["stem.forward"] == manifest.graphs["stem.predict"]  # it makes no difference between modes
    assert list(manifest.table.parts) == ["encoder", "head.depth", "head.kind", "stem"]
    group = manifest.group(("kind",), manifest.weights)
    assert list(group.table.parts) == ["encoder", "head.kind", "stem"]
    assert "stem.backward" in group.graphs


def test_parity_covers_the_gradient_of_the_embedding(make, run):
    compiled = compile_model(divided(make), stages=1)
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE

    def spoilt(graph, inputs):
        results = dict(run(graph, inputs))
        if graph == compiled.graphs["encoder.0.kept"]:
            results["de"] = results["de"] + 1
        return results

    with pytest.raises(ParityFailed, match=r"de of encoder\.0\.kept"):
        check_parity(compiled, spoilt)


def test_model_with_a_stem_and_dropout_draws_apart_and_agrees(make, run):
    model = divided(
        make,
        stem=nn.Sequential(nn.Conv2d(3, 6, 1), nn.Dropout(0.3)),
        encoder=nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.Dropout(0.3)),
    )
    assert check_parity(compile_model(model), run).max_relative_error <= TOLERANCE


class Apart:
    """A general model on one machine, stem and heads on another: two engines, and two vectors of weights."""

    def __init__(self, folder, compiled):
        self.manifest = bundle_folder.read_folder(folder)
        self.device = Model(self.manifest, graphs_of(folder, self.manifest), compiled.weights)
        self.stem = Stem(self.manifest.embedding, graphs_of(folder, self.manifest))
        self.there = Model(self.manifest, graphs_of(folder, self.manifest), compiled.weights)
        self.encoder = LocalEncoder(self.manifest, graphs_of(folder, self.manifest))

    def learn(self, x, targets):
        own, general = self.device._inputs, self.there._inputs["encoder"]
        e = self.stem.forward(x, own["stem"])
        done = self.encoder.forward({"e": e}, general, {})
        losses, dz = self.device.run_heads(done.z, targets)
        de = self.encoder.backward(done, dz, general, self.there._outputs["encoder"], release=True)()
        self.stem.backward(x, de, own["stem"], self.device._outputs["stem"])
        return losses

    def step(self, sgd, velocities):
        for model, velocity in zip((self.device, self.there), velocities, strict=True):
            sgd.step(model.parameters, model.gradient, velocity)

    @property
    def weights(self):
        whole = self.device.weights.copy()
        whole[self.device.encoder] = self.there.weights[self.there.encoder]
        return whole


def test_encoder_computed_apart_gives_the_bits_of_the_whole_model(folder, small):
    """Every array crosses as bytes, as over a wire; four steps of SGD with momentum."""
    apart = Apart(folder, small)
    whole = Model(apart.manifest, graphs_of(folder, apart.manifest), small.weights)
    targets = {task: y.numpy() for task, y in small.model.example_targets.items()}
    sgd = Sgd(lr=0.05, momentum=0.9, weight_decay=0.0)
    own, others = np.zeros_like(whole.gradient), (np.zeros_like(whole.gradient), np.zeros_like(whole.gradient))
    first = None
    for step in range(4):
        x = {"x": small.model.example_input.numpy() + np.float32(0.1 * step)}
        losses = whole.learn(x, targets)
        assert apart.learn(x, targets) == losses
        sgd.step(whole.parameters, whole.gradient, own)
        apart.step(sgd, others)
        assert apart.weights.tobytes() == whole.weights.tobytes()
        first = first or losses
    start, end = (np.split(v, [0])[1] for v in (small.weights, whole.weights))
    assert (start[whole.table.parts["stem"]] != end[whole.table.parts["stem"]]).any()
    assert sum(losses.values()) < sum(first.values())


def test_encoder_kept_or_recomputed_gives_the_same_gradient_of_the_stem(folder, small):
    manifest = bundle_folder.read_folder(folder)
    targets = {task: y.numpy() for task, y in small.model.example_targets.items()}
    found = []
    for keep in ((False, False), (True, True)):
        model = Model(manifest, graphs_of(folder, manifest), small.weights, save_activations=keep)
        model.learn({"x": small.model.example_input.numpy()}, targets)
        found.append(model.gradient[model.table.parts["stem"]].copy())
    np.testing.assert_allclose(found[1], found[0], atol=1e-5 * np.abs(found[0]).max())
    assert found[0].any()


def test_stem_before_frozen_stages_is_not_trained(folder, small):
    manifest = bundle_folder.read_folder(folder)
    targets = {task: y.numpy() for task, y in small.model.example_targets.items()}
    model = Model(manifest, graphs_of(folder, manifest), small.weights, frozen=1)
    model.learn({"x": small.model.example_input.numpy()}, targets)
    stem = model.table.parts["stem"]
    assert not model.gradient[stem].any()
    assert all(where.stop <= stem.start for where in model.trained)
    assert Model(manifest, graphs_of(folder, manifest), small.weights).trained == (slice(0, stem.stop),)


def test_probe_of_a_model_with_a_stem_looks_ahead_along_the_encoder(folder, small):
    from edge_runtime.training.probe import Probe

    manifest = bundle_folder.read_folder(folder)
    model = Model(manifest, graphs_of(folder, manifest), small.weights)
    targets = {task: y.numpy() for task, y in small.model.example_targets.items()}
    done, kept = model.forward({"x": small.model.example_input.numpy()}), {}
    losses, _ = model.run_heads(
        done.z, targets, on_task=lambda task, _, dz: kept.update({task: tuple(map(np.copy, dz))})
    )
    exact, first = (
        Probe(method=method, lr=1e-3, weight_decay=0.0).measure(model, done, targets, losses, kept)
        for method in ("exact", "encoder")
    )
    np.testing.assert_allclose(exact, first, rtol=0.2, atol=0.05 * np.abs(first).max())
    assert model.weights.tobytes() == small.weights.tobytes()


def test_deployed_model_with_a_stem_predicts_as_pytorch(folder, small, run):
    manifest = bundle_folder.read_folder(folder)
    deployed = inference_model(folder, manifest, small.weights).SerializeToString()
    x = small.model.example_input
    found = run(deployed, {"image": x.numpy()})
    with torch.no_grad():
        z = small.model.encode({"x": x})
        for task in small.model.tasks:
            expected = small.model.heads[task](z).numpy()
            np.testing.assert_allclose(found[task], expected, atol=1e-4 * np.abs(expected).max())


CASES = {
    "statistics": (
        lambda: {"encoder": nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))},
        "encoder.1.running_mean: a model with a stem keeps no running statistics",
    ),
    "statistics_of_the_stem": (
        lambda: {"stem": nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))},
        "stem.1.running_mean: a model with a stem",
    ),
    "tuple": (lambda: {"stem": Piece(lambda m, x: (m.inner[0](x),), nn.Conv2d(3, 6, 1))}, "the stem must return one"),
    "batch": (
        lambda: {"stem": Piece(lambda m, x: m.inner[0](x)[:1], nn.Conv2d(3, 6, 1))},
        "whose first dimension is the batch",
    ),
    "fails": (lambda: {"stem": nn.Conv2d(5, 6, 1)}, "the stem fails on example_input"),
    "encoder_fails": (lambda: {"encoder": nn.Conv2d(5, 4, 1)}, "the encoder fails on the stem's embedding, of shape"),
    "no_parameters": (lambda: {"stem": nn.Identity(), "encoder": nn.Conv2d(3, 4, 1)}, "stem has no parameters"),
    "no_effect": (
        lambda: {"encoder": Piece(lambda m, x: m.inner[0](x.detach()), nn.Conv2d(6, 4, 1))},
        "the stem's embedding gets no gradient",
    ),
    "parameter": (
        lambda: {"stem": Piece(lambda m, x: m.inner[0](x), nn.Conv2d(3, 6, 1), nn.Linear(2, 2))},
        "parameter stem.inner.1.* gets no gradient",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_stem_is_refused(name, make):
    fields, reason = CASES[name]
    with pytest.raises(ModelInvalid, match=reason):
        compile_model(divided(make, **fields()))


def test_official_artifacts_are_refused(make):
    with pytest.raises(OrtTrainingImpossible, match="and this one has a stem"):
        forward_graph(divided(make))


@pytest.mark.parametrize(("build", "tasks", "size"), [(vit.build_small_nine, 9, 32), (vit.build_views, 5, 64)])
def test_models_of_the_experiments_predict_every_pixel(build, tasks, size):
    model = build()
    check(model)
    assert len(model.tasks) == tasks
    z = model.encode(model.inputs)
    assert {model.heads[task](z).shape[2:] for task in model.tasks} == {(size, size)}
