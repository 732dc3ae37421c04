"""Three kinds of tensor: trained, state and fixed. Freezes of every kind train to PyTorch's numbers."""

import copy

import msgspec
import numpy as np
import pytest
import samples

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from broker_server.simulation.worker import measure_stem  # noqa: E402
from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.training.optimizer import AdamW, Sgd  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.personal import OwnParts, kept_parts  # noqa: E402
from edge_runtime.wire.tensors import pack  # noqa: E402
from export.__main__ import main  # noqa: E402
from export.compile import compile_model, describe, named_tensors  # noqa: E402
from export.deploy import inference_model  # noqa: E402
from export.errors import ModelInvalid  # noqa: E402
from export.module_state import in_training  # noqa: E402
from export.ort_training.training_model import forward_graph, group_graph  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation
NO_PARITY = wire.Parity(max_relative_error=0.0, worst="", compared=0)


def frozen(module):
    return module.requires_grad_(False)


class Fn(nn.Module):
    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.function(self, x)


class Lora(nn.Module):
    """A frozen linear layer with a trained change of low rank (Hu et al., ICLR 2022)."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = frozen(base)
        self.a = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -0.3 * gradient


def without_gradient(module, x):
    with torch.no_grad():
        y = module.below(x)
    return module.above(y)


def attention(module, x):
    y = module.below(x)
    with torch.no_grad():
        weight = torch.sigmoid(y.mean(1, keepdim=True))
    return module.above(y * weight)


def conv(inputs=4, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def norm(*, weights=True, statistics=True):
    layer = nn.BatchNorm2d(4)
    layer.running_mean.fill_(0.1)
    layer.running_var.fill_(0.5)
    layer.requires_grad_(weights)
    return layer if statistics else layer.eval()


def convolved(first, *rest):
    return nn.Sequential(first, nn.GELU(), *rest)


class Branches(nn.Module):
    """A fixed branch that is computed after a trained one, and used after both."""

    def __init__(self):
        super().__init__()
        self.trained, self.fixed, self.both = conv(3), frozen(conv(3)), conv(8)

    def forward(self, x):
        a = torch.tanh(self.trained(x))
        b = torch.tanh(self.fixed(x))
        return torch.tanh(self.both(torch.cat([a, b], 1)))


class Shared(nn.Module):
    """A frozen layer that is used below and above a trained one."""

    def __init__(self):
        super().__init__()
        self.fixed, self.first, self.trained = frozen(conv()), frozen(conv(3)), conv()

    def forward(self, x):
        return torch.tanh(self.fixed(torch.tanh(self.trained(torch.tanh(self.fixed(torch.tanh(self.first(x))))))))


# The encoder, the names of its fixed tensors, and how many first stages have a forward graph alone.
ENCODERS = {
    "bottom": (
        lambda: convolved(frozen(conv(3)), conv(), nn.GELU(), conv()),
        {"encoder.0.bias", "encoder.0.weight"},
        1,
    ),
    "top": (lambda: convolved(conv(3), frozen(conv())), {"encoder.2.bias", "encoder.2.weight"}, 0),
    "whole": (
        lambda: frozen(convolved(conv(3), conv())),
        {f"encoder.{i}.{name}" for i in (0, 2) for name in ("bias", "weight")},
        1,
    ),
    "bias_alone": (lambda: convolved(conv(3), frozen_weight(conv())), {"encoder.2.weight"}, 0),
    "lora": (
        lambda: nn.Sequential(nn.Flatten(), Lora(nn.Linear(192, 16)), nn.GELU(), nn.Unflatten(1, (4, 2, 2)), conv()),
        {"encoder.1.base.bias", "encoder.1.base.weight"},
        1,
    ),
    "no_grad_backbone": (
        lambda: Fn(without_gradient, below=convolved(conv(3)), above=conv()),
        {"encoder.below.0.bias", "encoder.below.0.weight"},
        1,
    ),
    "no_grad_of_trained": (lambda: Fn(attention, below=conv(3), above=conv()), set(), 0),
    "detached": (lambda: Fn(lambda m, x: m.a(x) * torch.sigmoid(m.a(x).detach()), a=conv(3)), set(), 0),
    "straight_through": (
        lambda: Fn(lambda m, x: m.above(torch.tanh(StraightThrough.apply(m.below(x)))), below=conv(3), above=conv()),
        set(),
        0,
    ),
    "reversed": (lambda: Fn(lambda m, x: m.above(Reversed.apply(m.below(x))), below=conv(3), above=conv()), set(), 0),
    "statistics": (
        lambda: nn.Sequential(conv(3), norm(statistics=False), nn.GELU(), conv()),
        {"state.encoder.1.running_mean", "state.encoder.1.running_var"},
        0,
    ),
    "frozen_normalization_that_moves": (
        lambda: nn.Sequential(frozen(conv(3)), norm(weights=False), nn.GELU(), conv()),
        {f"encoder.{i}.{name}" for i in (0, 1) for name in ("bias", "weight")},
        1,
    ),
    "frozen_backbone_in_evaluation": (
        lambda: nn.Sequential(
            frozen(nn.Sequential(conv(3), norm(statistics=False), nn.GELU(), nn.Dropout(0.5))).eval(), conv()
        ),
        {f"encoder.0.{i}.{name}" for i in (0, 1) for name in ("bias", "weight")}
        | {f"state.encoder.0.1.running_{name}" for name in ("mean", "var")},
        1,
    ),
    "branches": (Branches, {"encoder.fixed.bias", "encoder.fixed.weight"}, 0),
    "shared": (
        Shared,
        {f"encoder.{layer}.{name}" for layer in ("fixed", "first") for name in ("bias", "weight")},
        1,
    ),
    "unused": (
        lambda: Fn(lambda m, x: m.used(x), used=conv(3), unused=frozen(conv())),
        set(),
        0,
    ),
    "attention_in_evaluation": (
        lambda: nn.Sequential(
            nn.Flatten(2),
            frozen(nn.TransformerEncoderLayer(64, 2, 32, batch_first=True)).eval(),
            nn.Linear(64, 64),
            nn.Unflatten(2, (8, 8)),
            conv(3),
        ),
        None,
        1,
    ),
}


def frozen_weight(layer):
    layer.weight.requires_grad_(False)
    return layer


def model_of(case, make):
    torch.manual_seed(1)
    encoder = ENCODERS[case][0]()
    size = 2 if case == "lora" else 8
    targets = {"a": torch.rand(4, 1, size, size), "b": torch.rand(4, 2, size, size)}
    return make(encoder=encoder, example_input=torch.rand(4, 3, 8, 8), example_targets=targets)


def written(compiled, folder):
    manifest = describe(compiled, "test", NO_PARITY)
    bundle_folder.write_folder(folder, manifest, pack(compiled.table, compiled.weights), compiled.files)
    return bundle_folder.read_folder(folder)


def on_device(manifest, folder, weights, **options):
    graphs = GraphCache(Engine()).of(manifest, lambda name, _: bundle_folder.graph_path(folder, name))
    return Model(manifest, graphs, weights, **options)


def trained_by_pytorch(model, steps):
    """The losses and all tensors of a copy after some steps of SGD, each part's gradient as a device combines it."""
    parts = copy.deepcopy(model.parts())
    parameters = [p for module in parts.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
    before = [p for part in ("stem", "encoder") if part in parts for p in parts[part].parameters()]
    losses = []
    with in_training(*parts.values()):
        for step in range(steps):
            x = model.example_input + 0.1 * step
            optimizer.zero_grad()
            z = parts["encoder"](parts["stem"](x) if "stem" in parts else x)
            found = [model.losses[task](parts[f"head.{task}"](z), model.example_targets[task]) for task in model.tasks]
            sum(found).backward()
            for p in before:
                if p.grad is not None:
                    p.grad /= len(model.tasks) ** 0.5
            optimizer.step()
            losses.append([loss.item() for loss in found])
        named = {f"{part}.{name}": p for part, m in parts.items() for name, p in m.named_parameters()}
        named |= {f"state.{part}.{name}": b for part, m in parts.items() for name, b in m.named_buffers()}
        tensors = {name: value.detach().numpy().copy() for name, value in named.items()}
    return losses, tensors


def trained_on_device(model, device, steps):
    sgd, velocity = Sgd(lr=0.05, momentum=0.9, weight_decay=0.01), np.zeros_like(device.gradient)
    targets = {task: y.numpy() for task, y in model.example_targets.items()}
    losses = []
    for step in range(steps):
        device.reseed(0, 0, step)
        found = device.learn({"x": (model.example_input + 0.1 * step).numpy()}, targets)
        sgd.step(device.parameters, device.gradient, velocity, device.trained)
        losses.append([found[task] for task in model.tasks])
    return losses


@pytest.mark.parametrize("case", ENCODERS)
def test_freeze_is_compiled_and_trains_to_pytorchs_numbers(case, make, run, tmp_path):
    model = model_of(case, make)
    compiled = compile_model(model)
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    manifest = written(compiled, tmp_path)
    names = {tensor.name for fixed in manifest.fixed.values() for tensor in fixed.tensors}
    _, expected, forward_only = ENCODERS[case]
    assert expected is None or names == expected
    assert not names & {tensor.name for tensor in manifest.tensors}
    assert manifest.fixed_stages == forward_only
    for save in (False, True):
        device = on_device(manifest, tmp_path, compiled.weights, save_activations=(save,) * len(manifest.stages))
        ours = trained_on_device(model, device, 4)
        theirs, tensors = trained_by_pytorch(model, 4)
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)
        for name, view in device.table.views(device.weights).items():
            np.testing.assert_allclose(view, tensors[name], atol=2e-4, err_msg=name)
        for fixed in manifest.fixed.values():
            for tensor in fixed.tensors:
                held = named_tensors(model)[tensor.name].numpy()
                assert (tensors[tensor.name] == held).all()  # PyTorch left it as well


def test_frozen_bottom_has_no_backward_graph_and_wants_no_gradient(make, tmp_path):
    manifest = written(compile_model(model_of("bottom", make)), tmp_path)
    assert {name for name in manifest.graphs if name.startswith("encoder.0")} == {"encoder.0.forward"}
    first, second, *_ = manifest.stages
    assert first.parameters == ()
    assert first.writes == second.reads
    device = on_device(manifest, tmp_path, np.zeros(manifest.table.size, np.float32))
    assert device._graph("encoder.1.backward")._outputs == {f"grad.{name}" for name in second.parameters}


def test_heads_of_a_fixed_encoder_give_no_gradient_of_the_representation(make, tmp_path):
    compiled = compile_model(model_of("whole", make))
    manifest = written(compiled, tmp_path)
    assert not manifest.trains_shared
    assert "encoder" not in manifest.table.parts
    device = on_device(manifest, tmp_path, compiled.weights)
    assert device._graph("head.a.step")._outputs == {"loss", "grad.weight", "grad.bias"}
    assert not device.trains_encoder
    z = device.encode({"x": compiled.model.example_input.numpy()})
    targets = {task: y.numpy() for task, y in compiled.model.example_targets.items()}
    losses, total = device.run_heads(z, targets, np.array([2.0, 1.0]))
    assert all(losses.values())
    assert not any(array.any() for array in total)


HEADS = {
    "frozen": lambda: frozen(nn.Conv2d(4, 2, 1)),
    "part": lambda: nn.Sequential(frozen(nn.Conv2d(4, 4, 1)), nn.GELU(), nn.Conv2d(4, 2, 1)),
    "statistics": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), norm(statistics=False), nn.Conv2d(4, 2, 1)),
    "no_grad": lambda: Fn(without_gradient, below=nn.Conv2d(4, 4, 1), above=nn.Conv2d(4, 2, 1)),
    "straight_through": lambda: Fn(lambda m, z: StraightThrough.apply(m.a(z)), a=nn.Conv2d(4, 2, 1)),
}


@pytest.mark.parametrize("case", HEADS)
def test_freeze_in_a_head_trains_to_pytorchs_numbers(case, make, run, tmp_path):
    torch.manual_seed(2)
    try:
        model = make(heads={"a": nn.Conv2d(4, 1, 1), "b": HEADS[case]()})
        compiled = compile_model(model)
    except ModelInvalid as exc:
        assert case == "no_grad"  # what the representation has no gradient of cannot train the encoder
        assert "gets no gradient" in str(exc)
        return
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    manifest = written(compiled, tmp_path)
    assert ("head.b" in manifest.fixed) == (case != "straight_through")
    assert ("head.b" in manifest.table.parts) == (case != "frozen")
    device = on_device(manifest, tmp_path, compiled.weights)
    ours, (theirs, tensors) = trained_on_device(model, device, 4), trained_by_pytorch(model, 4)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    for name, view in device.table.views(device.weights).items():
        np.testing.assert_allclose(view, tensors[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("part", ["stem", "encoder"])
def test_frozen_stem_or_encoder_of_a_divided_model_trains_the_rest(part, make, run, tmp_path):
    torch.manual_seed(3)
    parts = {"stem": convolved(nn.Conv2d(3, 6, 3, padding=1)), "encoder": convolved(conv(6), conv())}
    frozen(parts[part])
    model = make(**parts)
    compiled = compile_model(model)
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    manifest = written(compiled, tmp_path)
    assert set(manifest.fixed) == {part}
    assert manifest.trains_shared
    assert ("stem.backward" in manifest.graphs) == (part == "encoder")
    device = on_device(manifest, tmp_path, compiled.weights)
    ours, (theirs, tensors) = trained_on_device(model, device, 4), trained_by_pytorch(model, 4)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    for name, view in device.table.views(device.weights).items():
        np.testing.assert_allclose(view, tensors[name], atol=2e-4, err_msg=name)
    assert ("encoder" in manifest.local().fixed) is False
    if part == "encoder":
        with pytest.raises(wire.BundleInvalid, match="the encoder has nothing to train"):
            manifest.encoder_table  # noqa: B018
    else:
        assert kept_parts(manifest.table, OwnParts(parts=("stem",), start=samples.blob())) == ()
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name, value in {"image": model.example_input, **model.example_targets}.items():
        np.save(tmp_path / "data" / "train" / f"{name}.npy", value.numpy())
    assert measure_stem(tmp_path, tmp_path / "data", 2).evaluate_s >= 0  # of a simulation


def test_fixed_tensors_are_sent_once_and_are_in_no_vector(make, tmp_path):
    compiled = compile_model(model_of("bottom", make))
    manifest = written(compiled, tmp_path)
    file = manifest.fixed["encoder"].file
    assert manifest.needs()[file.digest] == file.size_bytes
    group = manifest.group(("a",), manifest.weights)
    assert group.fixed == manifest.fixed
    assert group.needs()[file.digest] == file.size_bytes
    count = sum(p.numel() for p in compiled.model.encoder.parameters() if p.requires_grad)
    parameters = manifest.table.parameters
    assert manifest.table.where("encoder") == slice(0, count)
    for optimizer, vectors in ((Sgd(lr=0.1, momentum=0.9, weight_decay=0.0), 1), (adam(), 2)):
        assert optimizer.table(parameters).size == vectors * parameters.size + (vectors == 2)
    assert wire.decode(wire.encode(manifest)) == manifest


def adam():
    return AdamW(lr=0.1, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.0)


@pytest.mark.parametrize("case", ["bottom", "whole", "frozen_backbone_in_evaluation"])
def test_deployed_model_has_all_tensors(case, make, tmp_path):
    model = model_of(case, make)
    compiled = compile_model(model)
    manifest = written(compiled, tmp_path)
    plain = inference_model(tmp_path, manifest, compiled.weights)
    path = tmp_path / "model.onnx"
    path.write_bytes(plain.SerializeToString())
    found = Engine().load(path).call({"image": model.example_input.numpy()})
    for module in model.parts().values():
        module.eval()
    with torch.no_grad():
        z = model.encode(model.inputs)
        for task in model.tasks:
            np.testing.assert_allclose(found[task], model.heads[task](z).numpy(), atol=1e-5)


def test_nothing_to_train_is_refused_with_the_task(make):
    encoder = frozen(conv(3))
    with pytest.raises(ModelInvalid, match=r"nothing is trained for b: all of the encoder and of head\.b is fixed"):
        compile_model(make(encoder=encoder, heads={"a": nn.Conv2d(4, 1, 1), "b": frozen(nn.Conv2d(4, 2, 1))}))


def test_layers_without_effect_are_refused_unless_they_are_frozen(make):
    encoder = Fn(lambda m, x: m.used(x), used=conv(3), unused=conv())
    with pytest.raises(ModelInvalid, match=r"encoder\.unused\.bias gets no gradient.*requires_grad_\(False\)"):
        compile_model(make(encoder=encoder))


def test_fixed_tensors_are_constants_of_a_group_s_training_model(make):
    compiled = compile_model(model_of("frozen_backbone_in_evaluation", make))
    parameters = {name: view for name, view in compiled.table.views(compiled.weights).items() if name[:6] != "state."}
    group = group_graph(forward_graph(compiled.model), ("a",), parameters, compiled.fixed_tensors)
    assert set(group.trained) == {"encoder.1.bias", "encoder.1.weight", "head.a.bias", "head.a.weight"}
    assert {value.name for value in group.graph.graph.input} == {"x", "target.a", "loss_weights"}
    constants = {tensor.name for tensor in group.graph.graph.initializer}
    assert constants >= compiled.fixed_tensors.keys()


MODEL = """
import torch
from torch import nn
from export.model import MultiTaskModel

def build():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()).requires_grad_(False).eval()
    return MultiTaskModel(
        encoder=encoder, heads={"a": nn.Conv2d(4, 1, 1)}, losses={"a": nn.MSELoss()},
        example_input=torch.rand(2, 3, 8, 8), example_targets={"a": torch.rand(2, 1, 6, 6)},
    )
"""


def test_compile_says_what_is_fixed_and_replaces_a_bundle_of_before(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MODEL)
    out = tmp_path / "bundle"
    assert main(["compile", f"{tmp_path / 'mine.py'}:build", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "5 parameters and 128 fixed numbers" in said.out
    assert "encoder is trained in evaluation mode, as " in said.err
    assert "no gradient reaches" not in said.err
    assert bundle_folder.read_folder(out).footprint is not None
    assert main(["footprint", str(out), "--json"]) == 0
    columns = msgspec.json.decode(capsys.readouterr().out)["plans"]
    assert {plan["frozen"] for plan in columns} == {1}
    assert {plan["saved"][0] for plan in columns} == {False}
    stopped = MODEL.replace("(False).eval()", "()").replace("nn.Dropout())", "nn.Conv2d(4, 4, 1), Stop())")
    stop = "class Stop(nn.Module):\n    def forward(self, x):\n        return x.detach()\n"
    (tmp_path / "mine.py").write_text(stopped.replace("def build", f"{stop}\n\ndef build"))
    assert main(["compile", f"{tmp_path / 'mine.py'}:build", "--out", str(out)]) == 0
    assert "no gradient reaches parameter encoder.0.bias and 5 more: fixed" in capsys.readouterr().err
    (tmp_path / "mine.py").write_text(MODEL.replace(".requires_grad_(False).eval()", ""))
    assert main(["compile", f"{tmp_path / 'mine.py'}:build", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "fixed" not in said.out + said.err
    assert not list((out / wire.FIXED).glob("*"))
