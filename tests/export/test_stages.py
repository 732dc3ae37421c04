import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.wire.manifest import Parity  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.losses import l1  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation
NO_PARITY = Parity(max_relative_error=0.0, worst="", compared=0)


class Block(nn.Module):
    """A residual block with batch normalisation and dropout."""

    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout2d(0.1)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.second(self.drop(torch.relu(self.norm(self.first(x)))))


class Deep(nn.Module):
    """Blocks at three scales; what each scale gives is part of the representation, and the image is too."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(Block(8), Block(8)) for _ in range(3))

    def forward(self, x):
        found = [x]
        y = self.stem(x)
        for block in self.blocks:
            y = block(y)
            found.append(y)
            y = nn.functional.max_pool2d(y, 2)
        return tuple(found)


class Head(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, z):
        return self.last(z[self.scale]).mean((2, 3)) + z[0].mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    return MultiTaskModel(
        encoder=Deep(),
        heads={"fine": Head(1), "coarse": Head(3)},
        losses={"fine": l1, "coarse": l1},
        example_input=torch.rand(4, 3, 16, 16),
        example_targets={"fine": torch.rand(4, 1), "coarse": torch.rand(4, 1)},
    )


@pytest.mark.parametrize("stages", [*(pytest.param(each, marks=pytest.mark.long) for each in (1, 3)), 2, None])
def test_every_number_of_stages_agrees_with_pytorch(deep, run, stages):
    compiled = compile_model(deep, stages=stages)
    if stages is None:
        assert len(compiled.stages) > 1
    else:
        assert len(compiled.stages) == stages
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE


def test_stages_partition_parameters_and_write_each_value_once(deep):
    compiled = compile_model(deep)
    listed = [name for stage in compiled.stages for name in stage.parameters]
    assert sorted(listed) == sorted(name for name, _ in deep.encoder.named_parameters())
    written = [name for stage in compiled.stages for name in stage.writes]
    wanted = {f"z.{i}" for i in range(4)} | {f"v.{i}" for i in range(len(compiled.values))}
    assert len(written) == len(set(written))
    assert set(written) == wanted


def test_a_parameter_used_twice_stays_in_one_stage(run):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Conv2d(3, 3, 3, padding=1)
            self.between = nn.Conv2d(3, 3, 1)
            self.last = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1))

        def forward(self, x):
            return self.last(torch.tanh(self.shared(torch.tanh(self.between(torch.tanh(self.shared(x)))))))

    torch.manual_seed(0)
    model = MultiTaskModel(
        encoder=Twice(),
        heads={"a": nn.Conv2d(3, 1, 1)},
        losses={"a": l1},
        example_input=torch.rand(2, 3, 8, 8),
        example_targets={"a": torch.rand(2, 1, 8, 8)},
    )
    compiled = compile_model(model, stages=8)
    assert len(compiled.stages) > 1
    (owner,) = [stage for stage in compiled.stages if "shared.weight" in stage.parameters]
    assert "between.weight" in owner.parameters
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE


def on_device(compiled, folder, keep=()):
    for name, data in compiled.files.items():
        (folder / f"{name}.onnx").write_bytes(data)
    manifest = describe(compiled, "test", NO_PARITY)
    graphs = GraphCache(Engine()).of(manifest, lambda name, _: folder / f"{name}.onnx")
    return Model(manifest, graphs, compiled.weights, save_activations=keep)


def test_kept_recomputed_and_uncut_give_the_same_gradients_and_state(deep, tmp_path):
    folders = [tmp_path / name for name in ("one", "recompute", "keep", "mixed")]
    for folder in folders:
        folder.mkdir()
    cut = compile_model(deep, stages=4)
    models = [
        on_device(compile_model(deep, stages=1), folders[0]),
        on_device(cut, folders[1]),
        on_device(cut, folders[2], (True,) * 4),
        on_device(cut, folders[3], (False, True, True, False)),
    ]
    x = {"x": deep.example_input.numpy()}
    targets = {task: y.numpy() for task, y in deep.example_targets.items()}
    found = []
    for model in models:
        model.reseed(1, 2, 3)
        losses = model.learn(x, targets)
        found.append((np.array(list(losses.values())), model.gradient, model.weights))
    for results in found[1:]:
        for ours, theirs in zip(results, found[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_pass_can_be_gone_back_several_times(deep, tmp_path):
    model = on_device(compile_model(deep, stages=3), tmp_path, (True, False, True))
    done = model.forward({"x": deep.example_input.numpy()})
    dz = tuple(np.ones_like(z) for z in done.z)
    first = model.backward(done, dz).copy()
    model.backward(done, tuple(2 * one for one in dz))
    np.testing.assert_array_equal(model.backward(done, dz), first)
    assert all((one == 1).all() for one in dz)


def test_kept_stage_runs_no_convolution_of_the_forward_pass_again(deep):
    compiled = compile_model(deep, stages=2)

    def weights_used(kind):
        graph = onnx.load_model_from_string(compiled.graphs[f"encoder.1.{kind}"]).graph
        return sum(node.op_type == "Conv" and node.input[1].startswith("param.") for node in graph.node)

    assert weights_used("forward") == weights_used("keep") > 2
    assert weights_used("kept") < weights_used("backward")


def test_parameters_before_a_stopped_gradient_are_fixed(run):
    class Stopped(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

        def forward(self, x):
            for i, part in enumerate(self.parts):
                x = torch.tanh(part(x.detach() if i == 2 else x))
            return x

    model = MultiTaskModel(
        encoder=Stopped(),
        heads={"a": nn.Conv2d(3, 1, 1)},
        losses={"a": l1},
        example_input=torch.rand(2, 3, 8, 8),
        example_targets={"a": torch.rand(2, 1, 8, 8)},
    )
    compiled = compile_model(model)
    names = tuple(f"encoder.parts.{i}.{name}" for i in (0, 1) for name in ("bias", "weight"))
    assert compiled.unreached == names
    assert tuple(tensor.name for tensor in compiled.fixed["encoder"][0].tensors) == names
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
