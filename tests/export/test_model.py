import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.contract import check  # noqa: E402
from export.errors import ExportError, ModelInvalid, OperatorUnsupported  # noqa: E402
from export.losses import l1  # noqa: E402

pytestmark = pytest.mark.workstation


class Fn(nn.Module):
    def __init__(self, function, *children):
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(children or [nn.Conv2d(3, 4, 1)])

    def forward(self, x):
        return self.function(self, x)


def heads(**changes):
    return {"a": nn.Conv2d(4, 1, 1), "b": nn.Conv2d(4, 2, 1)} | changes


def doubled(norm):
    norm.running_mean = norm.running_mean.double()
    return norm


def shared():
    head = nn.Conv2d(4, 1, 1)
    other = nn.Conv2d(4, 2, 1)
    other.bias = nn.Parameter(torch.zeros(2))
    other.weight = nn.Parameter(torch.cat([head.weight, head.weight]).detach())
    other.extra = head.weight
    return {"a": head, "b": other}


CASES = {
    "no_heads": (lambda: {"heads": {}, "losses": {}, "example_targets": {}}, "no heads"),
    "loss_missing": (lambda: {"losses": {"a": l1}}, "task 'b' is in heads or in losses, but not in both"),
    "target_missing": (lambda: {"example_targets": {}}, "task 'a' is in heads or in example_targets"),
    "task_name": (
        lambda: {
            "heads": {"A b": nn.Conv2d(4, 1, 1)},
            "losses": {"A b": l1},
            "example_targets": {"A b": torch.rand(2, 1, 8, 8)},
        },
        "task name 'A b': use lower-case letters",
    ),
    "shared": (lambda: {"heads": shared()}, "parameter head.b.extra is shared with head.a.weight"),
    "double": (lambda: {"heads": heads(b=nn.Conv2d(4, 2, 1).double())}, "parameter head.b.* is torch.float64"),
    "no_parameters": (lambda: {"heads": heads(b=nn.Identity())}, "head.b has no parameters"),
    "input": (lambda: {"example_input": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "example_input is torch.uint8"),
    "encoder_list_of_numbers": (lambda: {"encoder": Fn(lambda m, x: (m.inner[0](x), 3))}, "or a tuple of such tensors"),
    "encoder_of_nothing": (lambda: {"encoder": Fn(lambda *_: ())}, "the encoder must return one float32"),
    "momentum": (
        lambda: {"encoder": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None))},
        "encoder.1 has momentum=None",
    ),
    "statistics_in_double": (
        lambda: {"heads": heads(b=nn.Sequential(nn.Conv2d(4, 2, 1), doubled(nn.BatchNorm2d(2))))},
        "head.b.1.running_mean is torch.float64",
    ),
    "encoder_fails": (lambda: {"encoder": nn.Conv2d(5, 4, 1)}, "the encoder fails on example_input: RuntimeError"),
    "head_fails": (
        lambda: {"heads": heads(b=nn.Conv2d(9, 2, 1))},
        r"head.b fails on the representation, of shape \(2, 4",
    ),
    "head_tuple": (
        lambda: {"heads": heads(b=Fn(lambda m, x: [m.inner[0](x)], nn.Conv2d(4, 2, 1)))},
        r"the loss of b fails on predictions of shape 0 \(2, 2, 8, 8\)",
    ),
    "loss_fails": (
        lambda: {"losses": {"a": l1, "b": lambda p, _: p.reshape(7)}},
        r"the loss of b fails on predictions of shape \(2, 2, 8, 8\)",
    ),
    "loss_not_a_scalar": (lambda: {"losses": {"a": l1, "b": lambda p, t: (p - t).abs()}}, "the loss of b must be a"),
    "target_type": (
        lambda: {"example_targets": {"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(2, 2, 8, 8, dtype=torch.int32)}},
        "the example target of b is torch.int32",
    ),
    "target_batch": (
        lambda: {"example_targets": {"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(3, 2, 8, 8)}},
        "with 2 samples is needed",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_model_that_cannot_be_trained_says_what_and_where(case, make):
    fields, text = CASES[case]
    with pytest.raises(ModelInvalid, match=text):
        check(make(**fields()))


@pytest.mark.parametrize(
    ("layer", "advice"),
    [
        (nn.SyncBatchNorm(4), "use BatchNorm"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "=False"),
    ],
)
def test_layer_that_cannot_be_exported_is_named_with_its_path_and_advice(layer, advice, make):
    model = make(encoder=nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), layer)))
    with pytest.raises(OperatorUnsupported, match=advice) as caught:
        check(model)
    assert caught.value.module == "encoder.1.1"


def test_dropout_of_nothing_is_allowed(make):
    check(make(encoder=nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.0))))


def test_parameter_without_effect_is_named(make):
    head = nn.Conv2d(4, 2, 1)
    head.unused = nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelInvalid, match=r"parameter head.b.unused gets no gradient"):
        compile_model(make(heads=heads(b=head)))
    with pytest.raises(ModelInvalid, match=r"parameter encoder.inner.1.bias gets no gradient"):
        compile_model(make(encoder=Fn(lambda m, x: m.inner[0](x), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))))


def test_head_that_ignores_the_representation_is_named(make):
    head = Fn(lambda m, x: m.inner[0](x.detach()), nn.Conv2d(4, 2, 1))
    with pytest.raises(ModelInvalid, match="head.b"):
        compile_model(make(heads=heads(b=head)))


def test_operator_is_named_with_the_module_that_uses_it(make):
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), Fn(lambda m, x: torch.lgamma(m.inner[0](x)), nn.Conv2d(4, 4, 1)))
    )
    with pytest.raises(OperatorUnsupported, match="aten.lgamma") as caught:
        compile_model(make(encoder=encoder))
    assert caught.value.module == "encoder.1.1"


@pytest.mark.parametrize(
    "function",
    [lambda m, x: m.inner[0](x) if x.sum() > 0 else m.inner[0](-x), lambda m, x: m.inner[0](x) * x.max().item()],
)
def test_control_flow_on_the_data_is_refused_with_the_module(function, make):
    with pytest.raises(ModelInvalid, match="control flow or a shape in encoder.1 depends on the data.*torch.where"):
        compile_model(make(encoder=nn.Sequential(nn.Conv2d(3, 3, 1), Fn(function))))


def test_control_flow_on_the_batch_size_is_refused(make):
    function = lambda m, x: m.inner[0](x) if x.shape[0] > 4 else m.inner[0](x.exp())  # noqa: E731
    with pytest.raises(ModelInvalid, match="another batch size"):
        compile_model(make(encoder=Fn(function)))


class InPlace(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.inner = function, nn.Conv2d(3, 4, 1)
        self.register_buffer("count", torch.zeros(4, 1, 1))

    def forward(self, x):
        return self.function(self, x)


def counted(module, x):
    module.count.add_(1.0)
    return module.inner(x) * module.count


def replaced(module, x):
    module.count = module.count + 1
    return module.inner(x) * module.count


def decayed(module, x):
    module.inner.weight.data.mul_(0.9)
    return module.inner(x)


def saved(module, x):
    return torch.sigmoid(module.inner(x)).mul_(2.0)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (counted, r"encoder\.1\.count changes while the model runs"),
        (replaced, r"encoder\.1\.count changes while the model runs"),
        (decayed, r"encoder\.1\.inner\.weight changes while the model runs"),
        (saved, "encoder cannot be differentiated: .* modified by an inplace operation"),
        (lambda m, x: m.inner(x).half().float(), r"in encoder\.1 cannot be exported: its result is torch.float16"),
    ],
)
def test_trick_that_no_graph_can_follow_is_refused_with_the_module(function, text, make):
    with pytest.raises(ExportError, match=text):
        compile_model(make(encoder=nn.Sequential(nn.Conv2d(3, 3, 1), InPlace(function))))
