"""Whatever build() returns instead of a model that can be exported is one sentence; some of it can be exported."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.contract import check  # noqa: E402
from export.errors import ExportError, ModelInvalid, OperatorUnsupported  # noqa: E402
from export.losses import l1  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation
TARGETS = {"a": torch.rand(2, 1, 8, 8), "b": torch.rand(2, 2, 8, 8)}


class Encoder(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function, self.calls = nn.Conv2d(3, 4, 3, padding=1), function, 0

    def forward(self, x):
        return self.function(self, self.conv(x))


def count(module, y):
    module.calls += 1
    return y * module.calls


def named(name):
    return {"heads": {name: nn.Conv2d(4, 1, 1)}, "losses": {name: l1}, "example_targets": {name: TARGETS["a"]}}


def target(value):
    return {"example_targets": TARGETS | {"b": value}}


def head(module):
    return {"heads": {"a": nn.Conv2d(4, 1, 1), "b": module}}


def initialised_badly():
    head = nn.Conv2d(4, 2, 1)
    nn.init.constant_(head.bias, float("nan"))
    return head


class Several(nn.Conv2d):
    """A head that gives whatever a function makes of its convolution."""

    def __init__(self, returned):
        super().__init__(4, 2, 1)
        self.returned = returned

    def forward(self, z):
        return self.returned(super().forward(z))


CASES = {
    "encoder_dict": (
        lambda: {"encoder": Encoder(lambda _, y: {"out": y})},
        "encoder must return one float32 tensor .*; it returns a dict",
    ),
    "encoder_nested": (
        lambda: {"encoder": Encoder(lambda _, y: (y, [y, y]))},
        "or a tuple of such tensors; it returns a tuple of Tensor, list",
    ),
    "encoder_function": (lambda: {"encoder": lambda x: x}, "encoder is a function: wrap it in an nn.Module"),
    "encoder_none": (lambda: {"encoder": None}, "encoder is a NoneType: give an nn.Module"),
    "encoder_script": (
        lambda: {"encoder": torch.jit.script(nn.Conv2d(3, 4, 1))},
        "encoder is a .*Script.*: give the nn.Module that it was made of",
    ),
    "encoder_has_script": (
        lambda: {"encoder": nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 1)))},
        "encoder.0 is a .*Script.*: give the nn.Module that it was made of",
    ),
    "encoder_parallel": (
        lambda: {"encoder": nn.DataParallel(nn.Conv2d(3, 4, 1))},
        "encoder is a DataParallel: give its .module",
    ),
    "encoder_compiled": (
        lambda: {"encoder": torch.compile(nn.Conv2d(3, 4, 1))},
        "encoder is compiled by torch.compile: give the nn.Module",
    ),
    "encoder_lazy": (
        lambda: {"encoder": nn.Sequential(nn.LazyConv2d(4, 1), nn.ReLU())},
        "encoder.0 is lazy, weight has no shape yet: run the model once",
    ),
    "encoder_counts": (lambda: {"encoder": Encoder(count)}, "encoder.calls changes while the model runs"),
    "encoder_of_nothing": (
        lambda: {"encoder": Encoder(lambda _, y: y[:, :0])},
        r"the representation has the shape \(2, 0, 8, 8\), holds nothing",
    ),
    "encoder_on_meta": (
        lambda: {"encoder": nn.Conv2d(3, 4, 1, device="meta")},
        "encoder.weight is on meta: return the model on the CPU",
    ),
    "input_tuple": (
        lambda: {"example_input": (torch.rand(2, 3, 8, 8), torch.rand(2, 5))},
        "example_input is a tuple: give one batch, or several by",
    ),
    "input_dict": (lambda: {"example_input": {"x": torch.rand(2, 3)}}, "the encoder fails on example_input"),
    "input_empty": (
        lambda: {"example_input": torch.rand(0, 3, 8, 8)},
        r"example_input has the shape \(0, 3, 8, 8\), holds nothing: give samples",
    ),
    "input_vector": (lambda: {"example_input": torch.rand(2)}, r"example_input is torch.float32 of shape \(2,\)"),
    "input_sparse": (lambda: {"example_input": torch.eye(2).to_sparse()}, "a dense tensor on the CPU is needed"),
    "targets_list": (lambda: {"example_targets": [TARGETS["a"]]}, "example_targets is a list: give a dictionary"),
    "target_tuple": (lambda: target((TARGETS["b"], TARGETS["b"])), "the example target of b is a tuple, not a tensor"),
    "target_numpy": (
        lambda: target(TARGETS["b"].numpy()),
        "the example target of b is a ndarray, not a tensor: torch.from_numpy",
    ),
    "target_bool": (lambda: target(TARGETS["b"] > 0), "the example target of b is torch.bool .* float32 or int64"),
    "heads_list": (lambda: {"heads": [nn.Conv2d(4, 1, 1)]}, "heads is a list: give a dictionary"),
    "head_function": (lambda: head(lambda z: z), "head.b is a function: wrap it in an nn.Module"),
    "head_scalar": (
        lambda: head(nn.Sequential(nn.Conv2d(4, 1, 1), nn.Flatten(0))),
        r"the prediction of b is torch.float32 of shape \(128,\): its first dimension is the batch",
    ),
    "head_text": (
        lambda: head(Several(lambda _: "b")),
        "head.b must return a float32 tensor, or several in a dictionary or a tuple; it returns a str",
    ),
    "head_of_none": (lambda: head(Several(lambda _: ())), "head.b returns 0 predictions: return 1 to 16"),
    "head_of_many": (lambda: head(Several(lambda y: [y] * 17)), "head.b returns 17 predictions: return 1 to 16"),
    "head_of_other_names": (lambda: head(Several(lambda y: {"the mean": y})), "prediction name 'the mean': use lower"),
    "head_of_classes": (
        lambda: head(Several(lambda y: {"mean": y, "class": y.argmax(1)})),
        "the prediction class of b must be a float32 tensor; it is torch.int64",
    ),
    "head_of_a_scalar": (
        lambda: head(Several(lambda y: (y, y.mean()))),
        r"the prediction 1 of b is torch.float32 of shape \(\): its first dimension is the batch",
    ),
    "loss_of_two": (
        lambda: head(Several(lambda y: y.split(1, 1))),
        r"the loss of b fails on predictions of shape 0 \(2, 1, 8, 8\), 1 \(2, 1, 8, 8\) and its example target",
    ),
    "head_not_finite": (lambda: head(initialised_badly()), "head.b.bias has a value that is not finite"),
    "loss_text": (lambda: {"losses": {"a": l1, "b": "mse"}}, "the loss of b is a str: give a function"),
    "loss_unreduced": (
        lambda: {"losses": {"a": l1, "b": nn.MSELoss(reduction="none")}},
        r"the loss of b must be a float32 scalar.*; it is torch.float32 of shape \(2, 2, 8, 8\)",
    ),
    "loss_of_other_shapes": (
        lambda: target(torch.rand(2, 1, 8, 8)) | {"losses": {"a": l1, "b": nn.MSELoss()}},
        r"the loss of b compares predictions of shape \(2, 2, 8, 8\) with targets of shape \(2, 1, 8, 8\), each",
    ),
    "loss_not_a_number": (
        lambda: {"losses": {"a": l1, "b": lambda p, t: (p - t - 9).log().mean()}},
        "the loss of b is nan for the example batch, in PyTorch itself: give an example",
    ),
    "task_called_image": (lambda: named("image"), "task name 'image': data sets call the input so"),
    "task_in_upper_case": (lambda: named("Depth"), "task name 'Depth': use lower-case letters"),
    "task_number": (lambda: named(3), "task name 3: use lower-case letters"),
    "metrics_list": (lambda: {"metrics": ["rmse"]}, "metrics is a list: give a dictionary"),
    "ignored_text": (lambda: {"ignored_classes": {"b": "sky"}}, "ignored_classes of b is a str: give a class"),
    "too_many": (
        lambda: {"heads": {f"t{i}": nn.Conv2d(4, 1, 1) for i in range(33)}},
        "the model has 33 heads: give at most 32",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_model_is_one_sentence(case, make):
    fields, text = CASES[case]
    with pytest.raises(ModelInvalid, match=text) as caught:
        check(make(**fields()))
    assert "\n" not in str(caught.value)


UNTRACEABLE = {
    "mask": (lambda p, t: (p[t > 0.5] - t[t > 0.5]).abs().mean(), "depends on the data"),
    "numpy": (
        lambda p, t: (p * torch.from_numpy(p.detach().numpy()) - t).mean(),
        "cannot be traced or differentiated with 3 samples: .* use operators of torch alone",
    ),
    "checked": (
        lambda p, t: (p - t).abs().mean() + torch.linalg.inv(torch.eye(3) * p.mean()).sum(),
        "cannot be exported",
    ),
}


@pytest.mark.parametrize("case", UNTRACEABLE)
def test_what_cannot_be_traced_is_one_sentence(case, make):
    loss, text = UNTRACEABLE[case]
    with pytest.raises(ExportError, match=text) as caught:
        compile_model(make(losses={"a": l1, "b": loss}))
    assert "\n" not in str(caught.value)


def test_gradient_that_is_no_number_in_pytorch_is_one_sentence(make, run):
    compiled = compile_model(make(losses={"a": l1, "b": lambda p, _: (0 * p).abs().sqrt().mean()}))
    with pytest.raises(ModelInvalid, match=r"dz\.0 of head\.b\.step is nan for a batch of 1 .* in PyTorch itself"):
        check_parity(compiled, run)


def test_error_of_a_rule_names_operator_and_module(make, monkeypatch):
    from export.lowering.lower import RULES

    def broken(*_, **__):
        raise KeyError("val")

    monkeypatch.setitem(RULES, torch.ops.aten.gelu.default, broken)
    with pytest.raises(OperatorUnsupported, match=r"aten.gelu.default in encoder.1 .*KeyError: 'val'"):
        compile_model(make())


def hooked():
    module = Encoder(lambda m, _: torch.relu(m.kept))
    module.conv.register_forward_hook(lambda _, __, y: setattr(module, "kept", y))
    return module


@pytest.mark.parametrize(
    "fields",
    [
        lambda: {"heads": nn.ModuleDict({"a": nn.Conv2d(4, 1, 1), "b": nn.Conv2d(4, 2, 1)})},
        lambda: {"losses": nn.ModuleDict({"a": nn.MSELoss(), "b": nn.L1Loss()})},
        lambda: {"encoder": hooked()},
    ],
)
def test_other_containers_and_hooks_are_taken(fields, make, run):
    model = make(**fields())
    assert check_parity(compile_model(model), run).max_relative_error <= TOLERANCE
    assert not hasattr(model.encoder, "kept")
