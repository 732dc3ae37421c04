import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.training.optimizer import Sgd  # noqa: E402
from edge_runtime.training.probe import Probe  # noqa: E402
from edge_runtime.wire.manifest import Parity  # noqa: E402
from export.compile import compile_model, describe, named_tensors  # noqa: E402
from export.losses import l1  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402
from export.module_state import unchanged  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402
from export.running_statistics import moving, running_statistics  # noqa: E402

pytestmark = pytest.mark.workstation


class Stages(nn.Module):
    """Two stages, both handed on; one normalisation is used twice in a pass and one stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.two = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.frozen = nn.BatchNorm2d(6)
        self.plain = nn.BatchNorm2d(6, track_running_stats=False)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        first = torch.relu_(self.norm(self.norm(self.one(x)) * 2))
        return first, self.plain(self.frozen(self.two(first)))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(10, 5, 1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.out = nn.Conv2d(5, 1, 1)

    def forward(self, z):
        wide = nn.functional.interpolate(z[1], scale_factor=2.0, mode="bilinear")
        return self.out(torch.tanh(self.norm(self.mix(torch.cat([z[0], wide], 1)))))


class Last(nn.Module):
    """Uses the last stage alone."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 2)

    def forward(self, z):
        return self.out(z[-1].amax((2, 3)))


def made():
    torch.manual_seed(0)
    return MultiTaskModel(
        encoder=Stages(),
        heads={"dense": Both(), "value": Last()},
        losses={"dense": l1, "value": nn.MSELoss()},
        example_input=torch.rand(5, 3, 12, 12),
        example_targets={"dense": torch.rand(5, 1, 6, 6), "value": torch.rand(5, 2)},
    )


def on_device(compiled, folder):
    manifest = describe(compiled, "test", Parity(max_relative_error=0.0, worst="", compared=0))
    for name, data in compiled.files.items():
        (folder / f"{name}.onnx").write_bytes(data)
    graphs = GraphCache(Engine()).of(manifest, lambda name, _: folder / f"{name}.onnx")
    return Model(manifest, graphs, compiled.weights)


@pytest.fixture(scope="module")
def compiled():
    return compile_model(made())


def empty(z):
    return tuple(map(np.empty_like, z))


def test_state_is_in_the_table_after_all_parameters(compiled):
    table = compiled.table
    assert [part for part in table.parts if part.startswith("state.")] == ["state.encoder", "state.head.dense"]
    assert table.parameters.tensors == table.tensors[: len(table.parameters.tensors)]
    names = [tensor.name for tensor in table.tensors if tensor.part == "state.encoder"]
    assert names == [f"state.encoder.norm.running_{s}" for s in ("mean", "var")]
    fixed, _ = compiled.fixed["encoder"]
    assert [tensor.name for tensor in fixed.tensors] == [f"state.encoder.frozen.running_{s}" for s in ("mean", "var")]


def test_compiling_changes_nothing_in_the_model():
    model = made()
    modes = [module.training for part in model.parts().values() for module in part.modules()]
    before = {name: value.clone() for part in model.parts().values() for name, value in part.state_dict().items()}
    compile_model(model)
    after = {name: value for part in model.parts().values() for name, value in part.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [module.training for part in model.parts().values() for module in part.modules()]


def test_graphs_with_state_agree_with_pytorch(compiled, run):
    parity = check_parity(compiled, run)
    assert parity.max_relative_error <= TOLERANCE
    assert parity.compared > 40


def test_training_with_state_is_pytorchs(compiled, tmp_path):
    """Losses, parameters and running statistics after some steps, and what is evaluated with them."""
    reference, model = made(), on_device(compiled, tmp_path)
    parts = reference.parts()
    named = {name: p for part, module in parts.items() for name, p in module.named_parameters(prefix=part)}
    optimizer = torch.optim.SGD(named.values(), lr=0.05, momentum=0.9, weight_decay=0.01)
    sgd, velocity = Sgd(lr=0.05, momentum=0.9, weight_decay=0.01), np.zeros_like(model.gradient)
    targets = {task: y.numpy() for task, y in reference.example_targets.items()}
    for module in parts.values():
        module.train()
    for step in range(6):
        x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(step))
        done = model.forward({"x": x.numpy()})
        z = done.z
        total, dz = tuple(map(np.zeros_like, z)), empty(z)
        optimizer.zero_grad()
        ours, theirs = [], []
        stages = reference.encoder(x)
        for task in reference.tasks:
            ours.append(model.step(task, z, targets[task], dz))
            for summed, one in zip(total, dz, strict=True):
                np.add(summed, one, out=summed)
            theirs.append(reference.losses[task](reference.heads[task](stages), reference.example_targets[task]))
        model.backward(done, total)
        sgd.step(model.parameters, model.gradient, velocity)
        sum(theirs).backward()
        optimizer.step()
        np.testing.assert_allclose(ours, [loss.item() for loss in theirs], rtol=1e-4)
    views = model.table.views(model.weights)
    held = named_tensors(reference)
    assert held.keys() - views.keys() == {f"state.encoder.frozen.running_{s}" for s in ("mean", "var")}
    for name, view in views.items():
        np.testing.assert_allclose(view, held[name].numpy(), atol=2e-4, err_msg=name)
    for module in parts.values():
        module.eval()
    with torch.no_grad():
        stages = reference.encoder(x)
        encoded = model.encode({"x": x.numpy()})
        for task in reference.tasks:
            prediction = reference.heads[task](stages)
            loss = reference.losses[task](prediction, reference.example_targets[task]).item()
            assert model.evaluate(task, encoded, targets[task]) == pytest.approx(loss, rel=1e-3)
            found = model.predict(task, encoded)["prediction"]
            np.testing.assert_allclose(found, prediction.numpy(), atol=2e-3)


def test_head_that_passes_over_a_stage_gives_zeros_for_it(compiled, tmp_path):
    model = on_device(compiled, tmp_path)
    z = model.forward({"x": np.random.default_rng(0).random((3, 3, 12, 12), np.float32)}).z
    dz = tuple(np.full_like(one, 7) for one in z)
    model.step("value", z, np.zeros((3, 2), np.float32), dz)
    assert not dz[0].any()
    assert dz[1].any()


def test_probe_backward_and_evaluation_leave_parameters_and_state_bit_for_bit(compiled, tmp_path):
    model = on_device(compiled, tmp_path)
    x = {"x": compiled.model.example_input.numpy()}
    targets = {task: y.numpy() for task, y in compiled.model.example_targets.items()}
    done = model.forward(x)
    z = done.z
    kept = {task: empty(z) for task in model.tasks}
    losses = {task: model.step(task, z, targets[task], kept[task]) for task in model.tasks}
    assert (model.weights != compiled.weights).any()
    before = model.weights.copy()
    probe = Probe(method="exact", lr=0.1, weight_decay=0.01)
    values = probe.measure(model, done, targets, losses, kept)
    assert np.isfinite(values).all()
    model.backward(done, kept["dense"])
    for task in model.tasks:
        model.loss(task, z, targets[task])
        model.evaluate(task, model.encode(x), targets[task])
        model.predict(task, model.encode(x))
    assert model.weights.tobytes() == before.tobytes()


def test_state_of_a_frozen_normalization_stays(compiled, tmp_path):
    model = on_device(compiled, tmp_path)
    model.forward({"x": compiled.model.example_input.numpy()})
    moved = {
        name
        for name, view in model.table.views(model.weights).items()
        if (view != model.table.views(compiled.weights)[name]).any()
    }
    assert moved == {"state.encoder.norm.running_mean", "state.encoder.norm.running_var"}


def test_dropout_is_the_same_forward_and_backward_and_not_there_in_evaluation(run, tmp_path):
    torch.manual_seed(0)
    model = MultiTaskModel(
        encoder=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.3), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Dropout(0.2)),
        heads={"a": nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 2, 1))},
        losses={"a": l1},
        example_input=torch.rand(3, 3, 8, 8),
        example_targets={"a": torch.rand(3, 2, 6, 6)},
    )
    compiled = compile_model(model)
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    device = on_device(compiled, tmp_path)
    x, y = {"x": model.example_input.numpy()}, model.example_targets["a"].numpy()
    device.reseed(1, 2, 3)
    (first,) = device.forward(x).z
    assert (device.forward(x).z[0] == first).all()
    loss = device.loss("a", (first,), y)
    assert device.loss("a", (first,), y) == loss
    assert device.step("a", (first,), y, (np.empty_like(first),)) == pytest.approx(loss, rel=1e-6)
    device.reseed(1, 2, 4)
    assert (device.forward(x).z[0] != first).any()
    assert device.loss("a", (first,), y) != loss
    model.encoder.eval()
    with torch.no_grad():
        np.testing.assert_allclose(device.encode(x)[0], model.encoder(model.example_input).numpy(), atol=1e-6)


def test_batch_of_one_value_has_no_variance_and_does_not_end_training():
    norm = nn.BatchNorm1d(3, momentum=0.5)
    with moving() as moved:
        y = norm(torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.allclose(y, torch.zeros(1, 3), atol=1e-4)
    state = moved.of(norm)
    assert torch.equal(state["running_mean"], torch.tensor([0.5, 1.0, 1.5]))
    assert torch.allclose(state["running_var"], torch.tensor([0.5, 0.5, 0.5]), atol=1e-6)


def test_normalization_says_what_it_cannot_take():
    with moving(), pytest.raises(ValueError, match="4D"):
        nn.BatchNorm2d(3)(torch.zeros(2, 3))


def test_modules_are_as_they_were_afterwards():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3, affine=False)))
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    with unchanged(module):
        module.train()
        module(torch.rand(4, 3))
    assert module.training
    assert not module[1].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert list(running_statistics(module)) == [f"{m}.running_{s}" for m in ("0", "1.0") for s in ("mean", "var")]
