"""ONNX Runtime training artifacts: what can be made of which model, and what another environment makes of it."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.errors import BundleInvalid  # noqa: E402
from edge_runtime.wire.operators import ORT_TRAINING as OPERATORS  # noqa: E402
from edge_runtime.wire.tensors import transfer, unpack  # noqa: E402
from export.compile import compile_model  # noqa: E402
from export.errors import OrtTrainingImpossible  # noqa: E402
from export.losses import pixel_cross_entropy  # noqa: E402
from export.models import xception  # noqa: E402
from export.ort_training import training_model  # noqa: E402
from export.ort_training.groups import VARIABLE, ort_training_python, parse_groups  # noqa: E402

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get(VARIABLE) or ROOT / ".venv-ort-training" / "bin" / "python")
needs_environment = pytest.mark.skipif(
    not PYTHON.is_file(), reason="needs onnxruntime-training: make venv-ort-training"
)
LR = 0.05


def command(*words, python=sys.executable):
    return subprocess.run(
        [python, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def tiny():
    """The model of tests/fixtures: GroupNorm, SiLU, MaxPool, masked L1, dense cross-entropy."""
    return built("make_bundle")


def stateful():
    """Running statistics, dropout and a representation of three arrays."""
    return built("stateful_model")


def built(name):
    path = ROOT / "tests" / "fixtures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()


def losses_and_gradients(model, tasks, parameters):
    """What PyTorch computes for the example batch, the encoder's gradient from Σ ∂L_i/∂z · 1/√T."""
    own = {name: torch.tensor(value).requires_grad_() for name, value in parameters.items()}

    def call(part, x):
        values = {n.removeprefix(f"{part}."): v for n, v in own.items() if n.startswith(f"{part}.")}
        return torch.func.functional_call(model.parts()[part], values, (x,))

    z = call("encoder", model.example_input)
    leaf = z.detach().requires_grad_()
    losses = {t: model.losses[t](call(f"head.{t}", leaf), model.example_targets[t]) for t in tasks}
    sum(losses.values()).backward()
    z.backward(leaf.grad / len(tasks) ** 0.5)
    found = {f"loss.{task}": loss.detach().numpy() for task, loss in losses.items()}
    return found | {f"grad.{name}": value.grad.numpy() for name, value in own.items()}


def made(model, tasks):
    compiled = compile_model(model)
    table = compiled.table.select(["encoder", *(f"head.{task}" for task in tasks)])
    views = compiled.table.views(compiled.weights)
    parameters = {tensor.name: views[tensor.name] for tensor in table.tensors}
    inputs = {"x": model.example_input.numpy(), "loss_weights": np.ones(len(tasks), np.float32)}
    inputs |= {f"target.{task}": model.example_targets[task].numpy() for task in tasks}
    sample = training_model.ReferenceSample(inputs, losses_and_gradients(model, tasks, parameters))
    group = training_model.group_graph(training_model.forward_graph(model), tasks, parameters)
    return training_model.make_artifacts(group, [sample], PYTHON), parameters, sample


@needs_environment
@pytest.mark.parametrize("tasks", [("depth", "normals", "segmentation"), ("segmentation",)])
def test_artifacts_of_the_tiny_model_agree_with_pytorch(tasks):
    assert made(tiny(), tasks)[0].max_relative_error < 1e-5


@needs_environment
def test_artifacts_of_five_tasks_of_mas_agree_with_pytorch():
    torch.manual_seed(0)
    model = xception.make(xception.FIVE, width=0.05, size=32, batch=2)
    assert made(model, model.tasks)[0].max_relative_error < 5e-4


@needs_environment
def test_operators_are_translated_to_what_has_a_gradient(make):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.LayerNorm([4, 8, 8], elementwise_affine=False)

        def forward(self, x):
            y = self.norm(self.conv(x))
            a = torch.rsqrt(y.square() + 1.0) + 1.0 / (y.abs() + 2.0)
            return nn.functional.hardswish(y + a) + nn.functional.hardsigmoid(y) + nn.functional.gelu(y)

    head = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=2))
    other = nn.Sequential(
        nn.MaxPool2d(3, 2, 1), nn.Upsample(size=(7, 5)), nn.Flatten(), nn.Linear(140, 2), nn.Softmax(1)
    )
    model = make(
        encoder=Encoder(),
        heads={"a": head, "b": other},
        losses={"a": pixel_cross_entropy, "b": nn.MSELoss()},
        example_targets={"a": torch.randint(0, 3, (2, 8, 8)), "b": torch.rand(2, 2)},
    )
    assert made(model, model.tasks)[0].max_relative_error < 5e-5


@needs_environment
def test_gradient_of_each_operator_on_the_list_is_its_slope():
    script = ROOT / "tests" / "fixtures" / "ort_training_gradients.py"
    done = command(script, *sorted(training_model.DIFFERENTIABLE), python=PYTHON)
    assert done.returncode == 0, done.stderr[-2000:]
    wrong, _, operators = done.stdout.strip().partition("\noperators: ")
    assert wrong == "wrong:"
    for name in operators.split():
        domain, _, operator = name.partition(":")
        assert operator in OPERATORS[domain.removeprefix("ai.onnx")], f"a device refuses {name}"


API_STEPS = """
import sys
import numpy as np
from onnxruntime.training.api import CheckpointState, Module, Optimizer

folder, steps, lr = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
module = Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx")
optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
optimizer.set_learning_rate(lr)
inputs = np.load(f"{folder}/inputs.npz")
losses = []
for _ in range(steps):
    module.train()
    losses.append(float(module(*(inputs[name] for name in module.input_names()))[0]))
    optimizer.step()
    module.lazy_reset_grad()
names = [name for name, _ in state.parameters]
np.savez(f"{folder}/after.npz", losses=np.array(losses), **{n: state.parameters[n].data for n in names})
"""


@needs_environment
def test_five_steps_of_the_training_api_are_pytorch_s(tmp_path):
    model, steps = tiny(), 5
    artifacts, parameters, sample = made(model, model.tasks)
    for name, data in artifacts.files.items():
        (tmp_path / name).write_bytes(data)
    np.savez(tmp_path / "inputs.npz", **sample.inputs)
    done = command("-c", API_STEPS, tmp_path, steps, LR, python=PYTHON)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = []
    for _ in range(steps):
        found = losses_and_gradients(model, model.tasks, parameters)
        losses.append(sum(float(found[f"loss.{task}"]) for task in model.tasks))
        parameters = {name: value - LR * found[f"grad.{name}"] for name, value in parameters.items()}
    with np.load(tmp_path / "after.npz") as after:
        np.testing.assert_allclose(after["losses"], losses, rtol=1e-5)
        for name, value in parameters.items():
            np.testing.assert_allclose(after[name], value, atol=1e-5)


@needs_environment
def test_bundle_with_artifacts_trains_alike_on_both_engines(tmp_path, tiny_source):
    bundle, data = tmp_path / "bundle", ROOT / "tests" / "fixtures" / "data"
    done = command("-m", "export", "compile", tiny_source, "--out", bundle, "--ort-training", "require")
    assert done.returncode == 0, done.stderr
    done = command("-m", "export", "split", bundle, "--groups", "normals,depth;segmentation")
    assert done.returncode == 0, done.stderr
    assert "depth+normals, segmentation" in done.stdout
    manifest = bundle_folder.read_folder(bundle)
    assert list(manifest.ort_training.groups) == ["depth+normals", "depth+normals+segmentation", "segmentation"]
    before, out = wire.encode(manifest), tmp_path / "out"
    words = ("--groups", "depth", "--out", out, "--ort-training-python", PYTHON)
    done = command("-m", "export", "split", bundle, *words, python=PYTHON)  # as a server does
    assert done.returncode == 0, done.stderr
    assert (bundle / bundle_folder.MANIFEST).read_bytes() == before
    apart = wire.decode((out / bundle_folder.MANIFEST).read_bytes()).ort_training.groups["depth"]
    for name, file in apart.files.items():
        bundle_folder.check_file(bundle_folder.artifact_path(out, "depth", name), file)
    options = ("--epochs", 2, "--batch", 4, "--lr", 0.02, "--seed", 3, "--bundle", bundle, "--data", data)
    for tasks in ("depth,normals,segmentation", "depth,normals"):
        table = manifest.group(tuple(tasks.split(",")), manifest.weights).table
        weights = {}
        for engine, python in (("portable", sys.executable), ("ort_training", PYTHON)):
            out = tmp_path / f"{engine}.safetensors"
            words = ("--tasks", tasks, "--engine", engine, "--out", out)
            done = command("-m", "edge_runtime", "train", *options, *words, python=python)
            assert done.returncode == 0, done.stderr
            weights[engine] = unpack(table, out.read_bytes())
        np.testing.assert_allclose(weights["ort_training"], weights["portable"], atol=1e-5)
    done = command(
        *("-m", "edge_runtime", "train", *options, "--tasks", "depth", "--engine", "ort_training"), python=PYTHON
    )
    assert done.returncode == 3
    assert "the bundle has no ONNX Runtime training artifacts for depth" in done.stderr
    (bundle_folder.artifact_path(bundle, "segmentation", "checkpoint")).write_bytes(b"other")
    with pytest.raises(BundleInvalid, match="checkpoint is not the file"):
        bundle_folder.read_folder(bundle)


@needs_environment
def test_running_statistics_dropout_and_several_representations_train_alike_on_both_engines(tmp_path):
    source = f"{ROOT / 'tests' / 'fixtures' / 'stateful_model.py'}:build"
    bundle, data = tmp_path / "bundle", ROOT / "tests" / "fixtures" / "data"
    done = command("-m", "export", "compile", source, "--out", bundle, "--ort-training", "require")
    assert done.returncode == 0, done.stderr
    done = command("-m", "export", "split", bundle, "--groups", "normals")
    assert done.returncode == 0, done.stderr
    manifest = bundle_folder.read_folder(bundle)
    assert all(each.max_relative_error < 2e-4 for each in manifest.ort_training.groups.values())
    options = ("--epochs", 2, "--batch", 4, "--lr", 0.02, "--seed", 3, "--bundle", bundle, "--data", data)
    for tasks in ("depth,normals,segmentation", "normals"):
        table = manifest.group(tuple(tasks.split(",")), manifest.weights).table
        start = transfer(manifest.table, unpack(manifest.table, (bundle / bundle_folder.WEIGHTS).read_bytes()), table)
        weights = {}
        for engine, python in (("portable", sys.executable), ("ort_training", PYTHON)):
            out = tmp_path / f"{engine}.safetensors"
            words = ("--tasks", tasks, "--engine", engine, "--out", out)
            done = command("-m", "edge_runtime", "train", *options, *words, python=python)
            assert done.returncode == 0, done.stderr
            weights[engine] = unpack(table, out.read_bytes())
        np.testing.assert_allclose(weights["ort_training"], weights["portable"], atol=1e-5)
        before, after = table.views(start), table.views(weights["ort_training"])
        moved = {name for name in before if (before[name] != after[name]).any()}
        assert "state.encoder.norm.running_mean" in moved
        assert "state.encoder.last.running_var" in moved  # by the batches, though no loss of `normals` depends on it
        assert "state.encoder.frozen.running_var" not in moved


def test_group_s_graph_has_the_state_and_the_seeds_of_its_parts():
    model = stateful()
    forward = training_model.forward_graph(model)
    compiled = compile_model(model)
    parameters = {n: v for n, v in compiled.table.views(compiled.weights).items() if not n.startswith("state.")}
    own = {name: value for name, value in parameters.items() if name.startswith(("encoder.", "head.normals."))}
    group = training_model.group_graph(forward, ("normals",), own, compiled.fixed_tensors)
    inputs, outputs = ({value.name for value in each} for each in (group.graph.graph.input, group.graph.graph.output))
    assert {"seed.encoder", "seed.head.normals", "state.encoder.last.running_mean"} <= inputs
    assert not {"seed.head.depth", "state.head.depth.norm.running_mean"} & inputs
    assert "next.encoder.last.running_mean" in outputs
    fixed = "state.encoder.frozen.running_var"  # in evaluation mode: it does not move
    assert fixed in {constant.name for constant in group.graph.graph.initializer}
    assert fixed not in inputs
    assert "next.encoder.frozen.running_var" not in outputs
    assert "next.head.depth.norm.running_mean" not in outputs
    trained = {"encoder.norm.bias", "encoder.norm.weight", "encoder.one.weight"}
    assert set(group.trained) == trained | {"head.normals.out.bias", "head.normals.out.weight"}
    assert "encoder.three.weight" in group.frozen  # the running statistics after it move
    assert not set(group.trained) & set(group.frozen)


@needs_environment
def test_other_draws_than_those_of_the_portable_graphs_are_refused():
    model = stateful()
    compiled = compile_model(model)
    tensors = compiled.table.views(compiled.weights)
    parameters = {name: value for name, value in tensors.items() if not name.startswith("state.")}
    forward = training_model.forward_graph(model)
    group = training_model.group_graph(forward, ("normals",), parameters, compiled.fixed_tensors)
    inputs = {"x": model.example_input.numpy(), "loss_weights": np.ones(1, np.float32)}
    inputs |= {"target.normals": model.example_targets["normals"].numpy()}
    inputs |= {name: value for name, value in tensors.items() if name.startswith("state.")}
    inputs |= {f"seed.{part}": np.array(5, np.int64) for part in model.parts()}
    expected = {"loss.normals": np.array(2.0, np.float32)}
    with pytest.raises(OrtTrainingImpossible, match=r"the training model's loss\.normals differs from the portable"):
        training_model.make_artifacts(group, [training_model.ReferenceSample(inputs, expected)], PYTHON)


@needs_environment
@pytest.mark.parametrize(("scale", "tried"), [(1.0, True), (1.01, True), (1.0, False)])
def test_gradients_that_differ_by_a_decision_are_held_to_the_same_decisions(scale, tried, make):
    """In what is expected, one number is on the other side of the kink by 1e-9; what is off is refused all the same."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mask = nn.Conv2d(3, 4, 1), 1.0

        def forward(self, x):
            return torch.relu(self.conv(x)) * self.mask

    model = make(encoder=Encoder(), heads={"a": nn.Conv2d(4, 1, 1)}, losses={"a": nn.MSELoss()})
    model.example_targets.pop("b")
    x = model.example_input
    x[0, :, 0, 0] = 0
    model.encoder.conv.bias.data[0] = 1e-9
    model.example_targets["a"][0, 0, 0, 0] = 100
    forward = training_model.forward_graph(model)
    parameters = {
        f"{part}.{n}": p.detach().numpy() for part, m in model.parts().items() for n, p in m.named_parameters()
    }
    model.encoder.mask = torch.ones(2, 4, 8, 8)
    model.encoder.mask[0, 0, 0, 0] = 0
    expected = losses_and_gradients(model, ("a",), parameters)
    expected["grad.head.a.weight"] = expected["grad.head.a.weight"] * np.float32(scale)
    decided = [model.encoder(x).detach().numpy()]
    inputs = {"x": x.numpy(), "loss_weights": np.ones(1, np.float32), "target.a": model.example_targets["a"].numpy()}
    sample = training_model.ReferenceSample(inputs, expected)
    group = training_model.group_graph(forward, ("a",), parameters)
    decided_sample = (lambda: (sample, decided)) if tried else None
    if tried and scale == 1:
        assert training_model.make_artifacts(group, [sample], PYTHON, decided_sample).max_relative_error < 1e-4
    else:
        name = "head.a.weight" if scale != 1 else "encoder.conv.bias"
        with pytest.raises(OrtTrainingImpossible, match=rf"{name} differs from the portable graphs"):
            training_model.make_artifacts(group, [sample], PYTHON, decided_sample)


TRANSPOSED = """
import torch
from torch import nn
from export.losses import l1
from export.model import MultiTaskModel


def build():
    return MultiTaskModel(
        encoder=nn.Conv2d(3, 4, 3, 2, 1),
        heads={"up": nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, 2))},
        losses={"up": l1},
        example_input=torch.rand(2, 3, 8, 8),
        example_targets={"up": torch.rand(2, 1, 8, 8)},
    )
"""


@needs_environment
def test_operator_without_a_gradient_is_named_with_its_module(tmp_path):
    source = tmp_path / "model.py"
    source.write_text(TRANSPOSED)
    sentence = "onnxruntime-training 1.19.2 has no CPU gradient for ConvTranspose, which head/up.1 uses"
    done = command("-m", "export", "compile", f"{source}:build", "--out", tmp_path / "a", "--ort-training", "auto")
    assert done.returncode == 0, done.stderr
    assert sentence in done.stderr
    assert bundle_folder.read_folder(tmp_path / "a").ort_training is None
    done = command("-m", "export", "compile", f"{source}:build", "--out", tmp_path / "b", "--ort-training", "require")
    assert done.returncode == 3
    assert sentence in done.stderr
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_gradient_check_finds_what_lies_between_parameters_and_loss_alone(make):
    head = nn.Sequential(nn.Conv2d(4, 1, 1), nn.ELU())
    model = make(heads={"a": head, "b": nn.Conv2d(4, 2, 1)})
    training_model.forward_graph(model)

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 1, 1)

        def forward(self, z):
            return self.conv(z).amax(dim=3, keepdim=True).expand(-1, -1, -1, 8)

    with pytest.raises(OrtTrainingImpossible, match="no CPU gradient for ReduceMax, which head/a uses"):
        training_model.forward_graph(make(heads={"a": Rounded(), "b": nn.Conv2d(4, 2, 1)}))


def test_environment_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "python"))
    with pytest.raises(OrtTrainingImpossible, match="make venv-ort-training"):
        ort_training_python(None)
    assert ort_training_python(Path(sys.executable)) == Path(sys.executable)


def test_environment_without_onnxruntime_training_is_said(make):
    model = make()
    compiled = compile_model(model)
    parameters = compiled.table.views(compiled.weights)
    group = training_model.group_graph(training_model.forward_graph(model), model.tasks, parameters)
    with pytest.raises(OrtTrainingImpossible, match="has no onnxruntime-training 1.19.2"):
        training_model.make_artifacts(group, [], Path(sys.executable))


def test_groups_are_read_in_the_order_of_names_and_unknown_tasks_refused():
    manifest = bundle_folder.read_folder(ROOT / "tests" / "fixtures" / "bundle")
    assert parse_groups("normals, depth;segmentation;depth,normals", manifest) == [
        ("depth", "normals"),
        ("segmentation",),
    ]
    with pytest.raises(BundleInvalid, match="no task 'rain'"):
        parse_groups("depth,rain", manifest)


def test_split_of_a_bundle_with_a_graph_that_none_may_have_is_refused(tmp_path):
    bundle = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "bundle", tmp_path / "bundle"))
    path = bundle_folder.graph_path(bundle, "encoder.0.backward")
    data = path.read_bytes().replace(b"Conv", b"Loop")
    path.write_bytes(data)
    file = wire.File(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    manifest = wire.decode((bundle / bundle_folder.MANIFEST).read_bytes())
    changed = msgspec.structs.replace(manifest, graphs=manifest.graphs | {"encoder.0.backward": file})
    (bundle / bundle_folder.MANIFEST).write_bytes(wire.encode(changed))
    done = command(
        "-m", "export", "split", bundle, "--groups", "depth,normals", "--ort-training-python", sys.executable
    )
    assert done.returncode == 3
    assert "graph encoder.0.backward is refused: operator 'Loop'" in done.stderr


def test_split_of_a_bundle_without_a_forward_graph_is_refused(tmp_path):
    bundle = ROOT / "tests" / "fixtures" / "bundle"
    done = command("-m", "export", "split", bundle, "--groups", "depth", "--ort-training-python", sys.executable)
    assert done.returncode == 3
    assert "compile it with --ort-training require" in done.stderr


@pytest.fixture
def tiny_source(tmp_path):
    """A user's file whose model is that of tests/fixtures."""
    source = tmp_path / "tiny_model.py"
    path = ROOT / "tests" / "fixtures" / "make_bundle.py"
    source.write_text(
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('make_bundle', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "build = module.build\n"
    )
    return f"{source}:build"
