"""A user's modules are run with other tensors and left as they were."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.compile import compile_model, describe  # noqa: E402
from export.errors import ExportError  # noqa: E402
from export.module_state import noticing_modes, substituted, unchanged  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation


class Alias(nn.Module):
    """One layer under three names, its weight under a fourth."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(self.conv, nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.ModuleList([self.conv])
        self.weight = self.conv.weight

    def forward(self, x):
        return self.block(x) + nn.functional.conv2d(x, self.weight, padding=1)


def state(model):
    """Everything about a model's modules, by the identity of its objects."""
    found = []
    for part, module in model.parts().items():
        for path, child in module.named_modules(prefix=part, remove_duplicate=False):
            stores = {name: dict(getattr(child, name)) for name in ("_parameters", "_buffers", "_modules")}
            gradients = [id(value.grad) for value in stores["_parameters"].values() if value is not None]
            values = [value.clone() for value in (*child.parameters(), *child.buffers())]
            found.append((path, {k: id(v) for k, v in vars(child).items()}, stores, gradients, values))
    return found


def same(before, after):
    for one, other in zip(before, after, strict=True):
        assert one[:2] == other[:2]
        for name, store in one[2].items():
            assert store.keys() == other[2][name].keys()
            assert all(store[key] is other[2][name][key] for key in store)
        assert one[3] == other[3]
        assert all(map(torch.equal, one[4], other[4]))


def test_module_under_two_names_is_compiled_and_nothing_is_left_behind(make, run):
    model = make(encoder=Alias())
    model.encoder.block[1].running_mean.fill_(0.5)
    before = state(model)
    compiled = compile_model(model)
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    describe(compiled, "alias", check_parity(compiled, run))
    same(before, state(model))


def test_model_is_as_it_was_after_a_refusal(make):
    model = make(
        encoder=nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.Softsign(),
            nn.Dropout(),
            nn.FractionalMaxPool2d(2, output_ratio=0.5),
        )
    )
    before = state(model)
    with pytest.raises(ExportError):
        compile_model(model)
    same(before, state(model))


def test_substituted_tensors_stand_under_all_names():
    module = Alias()
    zeros = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    with substituted(module, zeros):
        assert module.weight is module.conv.weight is module.layers[0].weight is zeros["weight"]
        assert not module.eval()(torch.rand(1, 3, 4, 4)).any()
    assert isinstance(module.weight, nn.Parameter)
    assert module.weight is module.conv.weight


def test_unchanged_puts_back_modes_values_gradients_and_attributes():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module[1].eval()
    statistics = module[1].running_mean

    def interrupted():
        with unchanged(module):
            module.train()(torch.rand(2, 3, 4, 4)).sum().backward()
            module.note = 3
            del module.training
            module[1].running_mean = torch.ones(4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert module.training
    assert not module[1].training
    assert not hasattr(module, "note")
    assert module[1].running_mean is statistics
    assert not statistics.any()
    assert module[0].weight.grad is None


def mode_differs(module):
    with noticing_modes(module) as differ:
        module(torch.rand(2, 2))
        nn.Dropout()(torch.rand(2))  # whose mode is none of the module's
        return differ()


class WithTrain(nn.Linear):
    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_mode_may_differ_where_it_is_asked_for():
    plain = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))
    assert not mode_differs(plain)
    assert mode_differs(nn.Sequential(plain, nn.Dropout(0.1)))
    assert mode_differs(nn.Sequential(plain, WithTrain(2, 2)))
    assert "training" not in vars(nn.Module)
    assert plain.eval().training is False
