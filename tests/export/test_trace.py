import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.errors import ExportError, ModelInvalid  # noqa: E402
from export.trace import SIZES, Batch, trace  # noqa: E402

pytestmark = pytest.mark.workstation


def traced(function, *shape, module=None):
    return trace(function, lambda batch: [torch.zeros(batch, *shape)], module or nn.ModuleDict())


def step(found, name):
    return next(step for step in found.steps if name in str(step.target))


def test_batch_is_kept_open_in_shapes_and_arguments():
    found = traced(lambda x: (x.reshape(-1, 2) * 1,), 4, 2)
    assert found.inputs[0].shapes == ((Batch(1.0), 4, 2),)
    view = step(found, "view")
    assert view.shapes == ((Batch(4.0), 2),)


def test_number_that_grows_with_the_batch_is_proportional():
    found = traced(lambda x: (x * (x.shape[0] * 6),), 4)
    assert step(found, "mul").args[1] == Batch(6.0)


def test_number_that_falls_with_the_batch_is_inverse():
    found = traced(lambda x: (x * (0.5 / x.shape[0]),), 4)
    scale = step(found, "mul").args[1]
    assert scale.inverse
    assert scale.factor == pytest.approx(0.5)


def test_number_that_is_as_large_as_a_batch_is_not_taken_for_one():
    found = traced(lambda x: (x * SIZES[0], x.sum(0).expand(SIZES[1], 4)), 4)
    assert step(found, "mul").args[1] == SIZES[0]
    assert step(found, "expand").shapes == ((SIZES[1], 4),)


def test_number_that_is_not_a_number_is_the_same_for_every_batch():
    found = traced(lambda x: (torch.where(x > 0, x, float("nan")),), 4)
    assert found.outputs


@pytest.mark.parametrize(
    "function", [lambda x: (x * (x.shape[0] + 1),), lambda x: (x[1:],), lambda x: (x * x.shape[0] ** 2,)]
)
def test_number_that_is_neither_is_refused_with_both_values(function):
    with pytest.raises(ExportError, match="neither fixed nor proportional: treat samples alike"):
        traced(function, 4)


def test_control_flow_on_the_batch_size_is_refused():
    with pytest.raises(ModelInvalid, match="another batch size"):
        traced(lambda x: (x.exp() if x.shape[0] > 4 else x.sin(),), 4)


def test_shape_that_depends_on_the_data_is_refused():
    with pytest.raises(ModelInvalid, match="depends on the data"):
        traced(lambda x: (x[x > 0],), 4)


def test_constant_of_the_function_is_kept():
    table = torch.arange(4.0)
    found = traced(lambda x: (x + table,), 4)
    ((_, constant),) = found.constants
    assert constant.tolist() == [0, 1, 2, 3]


def test_constant_that_follows_the_batch_is_refused():
    with pytest.raises(ExportError, match="must not follow the batch"):
        traced(lambda x: (x + torch.tensor([float(i) for i in range(x.shape[0])]).unsqueeze(1),), 4)


def test_operator_that_takes_samples_apart_is_refused():
    with pytest.raises(ExportError, match=r"must not follow the batch|another batch size"):
        traced(lambda x: (torch.stack([row * 2 for row in x]),), 4)


def test_operators_know_their_module_and_gradients_inherit_it():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.GELU(), nn.GroupNorm(2, 4)))

    def function(x):
        x.requires_grad_()
        return torch.autograd.grad(module(x).sum(), [x])

    found = trace(
        function, lambda batch: [torch.zeros(batch, 3, 5, 5).requires_grad_()], nn.ModuleDict({"net": module})
    )
    assert step(found, "aten.convolution.default").module == "net.0"
    assert step(found, "native_group_norm.default").module == "net.1.1"
    assert step(found, "native_group_norm_backward").module == "net.1.1"


def test_change_in_place_becomes_a_result():
    found = traced(lambda x: (torch.relu_(x * 2),), 4)
    assert "aten.relu.default" in [str(s.target) for s in found.steps]


def test_hooks_are_gone_after_a_failure():
    module = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelInvalid):
        trace(lambda x: (module(x),), lambda batch: [torch.zeros(batch, 5, 2, 2)], module)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
