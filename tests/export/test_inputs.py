"""Models of whatever data has: signals, tables, tokens, and several inputs at once, held to PyTorch and deployed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire.graph_names import input_of  # noqa: E402
from edge_runtime.wire.manifest import Input, Parity  # noqa: E402
from edge_runtime.wire.tensors import pack  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.deploy import inference_model  # noqa: E402
from export.errors import ModelInvalid  # noqa: E402
from export.losses import cross_entropy, l2  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402
from export.ort_training.groups import example_inputs  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.workstation]
NO_PARITY = Parity(max_relative_error=0.0, worst="", compared=0)


class Windows(nn.Module):
    """(B, 6, 32) to (B, 16)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 16, 5, stride=2)

    def forward(self, signal):
        return torch.relu(self.conv(signal)).mean(-1)


class Words(nn.Module):
    """Tokens (B, 7) and, only in the last layer, where and when they were said (B, 3), to (B, 16)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.place = nn.Linear(3, 16)

    def forward(self, tokens, place):
        return torch.tanh(self.layers(self.table(tokens).mean(1)) + self.place(place))


class Described(nn.Module):
    """An image (B, 3, 8, 8) and a row of a table (B, 4), to (B, 16)."""

    def __init__(self):
        super().__init__()
        self.conv, self.row = nn.Conv2d(3, 16, 3), nn.Linear(4, 16)

    def forward(self, image, row):
        return torch.relu(self.conv(image)).mean((-2, -1)) * torch.sigmoid(self.row(row))


def two_tasks(encoder, example_input, **more):
    batch = 4
    return MultiTaskModel(
        encoder=encoder,
        heads={"kind": nn.Linear(16, 3), "level": nn.Linear(16, 1)},
        losses={"kind": cross_entropy(), "level": l2},
        example_input=example_input,
        example_targets={"kind": torch.randint(0, 3, (batch,)), "level": torch.rand(batch, 1)},
        **more,
    )


MODELS = {
    "table": lambda: two_tasks(nn.Sequential(nn.Linear(9, 16), nn.ReLU()), torch.rand(4, 9)),
    "waveform": lambda: two_tasks(Windows(), torch.rand(4, 6, 32)),
    "signal": lambda: two_tasks(Windows(), {"signal": torch.rand(4, 6, 32)}),
    "words": lambda: two_tasks(Words(), {"tokens": torch.randint(0, 50, (4, 7)), "place": torch.rand(4, 3)}),
    "described": lambda: two_tasks(Described(), {"row": torch.rand(4, 4), "image": torch.rand(4, 3, 8, 8)}),
    "stem": lambda: two_tasks(
        nn.Sequential(nn.Linear(16, 16), nn.Tanh()),
        {"tokens": torch.randint(0, 50, (4, 7)), "place": torch.rand(4, 3)},
        stem=Words(),
    ),
}
SOURCES = {
    "table": {"x": (9,)},
    "waveform": {"x": (6, 32)},
    "signal": {"x.signal": (6, 32)},
    "words": {"x.place": (3,), "x.tokens": (7,)},
    "described": {"x": (3, 8, 8), "x.row": (4,)},
    "stem": {"e": (16,)},
}


@pytest.fixture(params=MODELS)
def made(request, tmp_path, run):
    """A model's name, the model, and its bundle's folder."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    compiled = compile_model(model, stages=3)
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    manifest = describe(compiled, request.param, NO_PARITY)
    bundle_folder.write_folder(tmp_path, manifest, pack(compiled.table, compiled.weights), compiled.graphs)
    return request.param, compiled, tmp_path


def test_model_of_any_input_is_pytorchs_on_a_device_and_deployed(made):
    name, compiled, folder = made
    model, manifest = compiled.model, bundle_folder.read_folder(folder)
    assert {value: array.shape for value, array in manifest.sources.items()} == SOURCES[name]
    graphs = GraphCache(Engine()).of(manifest, lambda name, _: bundle_folder.graph_path(folder, name))
    device = Model(manifest, graphs, compiled.weights)
    given = {value: array.numpy() for value, array in model.inputs.items()}
    targets = {task: y.numpy() for task, y in model.example_targets.items()}

    losses = device.learn(given, targets)
    z = model.encode(model.inputs)
    expected = {task: model.losses[task](model.heads[task](z), model.example_targets[task]) for task in model.tasks}
    assert losses == pytest.approx({task: float(loss.detach()) for task, loss in expected.items()}, rel=1e-4)
    (sum(expected.values()) / np.sqrt(len(expected))).backward()
    gradients = device.table.parameters.views(device.gradient)
    for own, parameter in model.encoder.named_parameters():
        np.testing.assert_allclose(gradients[f"encoder.{own}"], parameter.grad, rtol=1e-3, atol=1e-6)

    plain = folder / "plain.onnx"
    onnx.save(inference_model(folder, manifest, compiled.weights), plain)
    found = Engine().load(plain).call({input_of(value): array for value, array in given.items()})
    for task in model.tasks:
        np.testing.assert_allclose(found[task], model.heads[task](z).detach(), rtol=1e-4, atol=1e-5)


def test_number_of_rows_that_tokens_look_up_is_in_the_manifest():
    manifest = describe(compile_model(MODELS["words"]()), "words", NO_PARITY)
    assert manifest.inputs["tokens"] == Input(shape=(7,), dtype="int64", count=50)
    assert manifest.inputs["place"] == Input(shape=(3,), dtype="float32")
    assert describe(compile_model(MODELS["stem"]()), "stem", NO_PARITY).inputs["tokens"].count == 50


TOKENS = torch.zeros(4, 7, dtype=torch.int64)
REFUSED = {
    "integers without a name": (TOKENS, r'or integers with a name, as example_input=\{"tokens": …\}'),
    "none": ({}, "example_input has 0 inputs: give 1 to 16"),
    "a name that no file has": ({"a b": TOKENS}, "input name 'a b': use lower-case letters"),
    "a task": ({"kind": TOKENS}, "'kind' is an input and a task: a data set has one file of a name"),
    "an image of integers": ({"image": TOKENS}, r"example_input\['image'\] is torch.int64: an image is float32"),
    "numbers of samples": ({"tokens": TOKENS, "place": torch.rand(3, 3)}, r"\['place'\] is .* 4 samples are needed"),
    "another type": ({"tokens": TOKENS.int()}, r"\['tokens'\] is torch.int32 .* float32 or int64 is needed"),
    "other names": (
        {"words": TOKENS, "place": torch.rand(4, 3)},
        "the encoder fails on example_input: TypeError: .*words",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_cannot_be_are_one_sentence(case):
    example_input, words = REFUSED[case]
    with pytest.raises(ModelInvalid, match=words):
        compile_model(two_tasks(Words(), example_input))


def test_ort_training_artifacts_are_of_images_alone():
    with pytest.raises(ModelInvalid, match="of models of images alone, this one has place, tokens"):
        example_inputs(MODELS["words"]())
