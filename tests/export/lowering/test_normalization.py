import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.errors import OperatorUnsupported  # noqa: E402
from export.lowering import normalization  # noqa: E402

pytestmark = pytest.mark.workstation


def drawn(module):
    """Weights that are not ones and biases that are not zeros."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return module


class Folded(nn.Module):
    """Normalises parts of each sample as if they were samples."""

    def __init__(self):
        super().__init__()
        self.norm = drawn(nn.GroupNorm(2, 4))

    def forward(self, x):
        return self.norm(x.reshape(-1, 4, *x.shape[2:])).reshape(x.shape)


CASES = {
    "groups": (lambda: nn.GroupNorm(2, 6), (6, 5, 7)),
    "one_group": (lambda: nn.GroupNorm(1, 6), (6, 5, 4)),
    "as_many_groups_as_channels": (lambda: nn.GroupNorm(6, 6), (6, 5, 4)),
    "groups_of_a_large_image": (lambda: nn.GroupNorm(2, 4), (4, 17, 18)),
    "groups_without_parameters": (lambda: nn.GroupNorm(2, 6, affine=False), (6, 5, 4)),
    "groups_without_parameters_large_image": (lambda: nn.GroupNorm(2, 4, affine=False), (4, 17, 18)),
    "groups_of_rows": (lambda: nn.GroupNorm(3, 6), (6, 9)),
    "groups_of_vectors": (lambda: nn.GroupNorm(2, 8), (8,)),
    "groups_with_another_epsilon": (lambda: nn.GroupNorm(2, 4, eps=0.1), (4, 3, 3)),
    "groups_of_folded_samples": (Folded, (8, 3, 5)),
    "layer": (lambda: nn.LayerNorm(7), (3, 7)),
    "layer_of_an_image": (lambda: nn.LayerNorm((4, 5, 3)), (4, 5, 3)),
    "layer_of_two_dimensions": (lambda: nn.LayerNorm((5, 3)), (4, 5, 3)),
    "layer_without_parameters": (lambda: nn.LayerNorm(7, elementwise_affine=False), (3, 7)),
    "layer_without_bias": (lambda: nn.LayerNorm(7, bias=False), (3, 7)),
    "layer_with_another_epsilon": (lambda: nn.LayerNorm(7, eps=0.1), (3, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_normalization_is_pytorchs(case, same_as_torch):
    make, shape = CASES[case]
    torch.manual_seed(0)
    same_as_torch(drawn(make()), shape)


@pytest.mark.parametrize("case", ["groups", "groups_of_a_large_image", "layer"])
def test_normalization_whose_input_needs_no_gradient(case, same_as_torch):
    make, shape = CASES[case]
    same_as_torch(drawn(make()), shape, input_gradient=False)


def test_normalization_of_far_away_values(same_as_torch):
    """A mean that is large against the deviation: no cancellation of squares."""
    same_as_torch(nn.GroupNorm(2, 4), (4, 17, 18), draw=lambda shape: torch.randn(shape) + 30)


@pytest.mark.parametrize("module", [nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm1d(4)])
def test_instance_normalization_is_pytorchs(module, same_as_torch):
    shape = (4, 9) if isinstance(module, nn.InstanceNorm1d) else (4, 5, 6)
    found = same_as_torch(drawn(module), shape)
    assert torch.ops.aten.native_group_norm.default in found.operators


class Statistics(nn.Module):
    """F.batch_norm that changes a buffer behind the module's back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.variance, training=True)


def test_layer_that_changes_a_buffer_is_refused_with_advice(translate):
    with pytest.raises(OperatorUnsupported, match="it changes a buffer: use a BatchNorm module"):
        translate(Statistics(), torch.randn(2, 4, 5, 5))


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for make, shape in CASES.values():
        found |= translate(make(), torch.randn(2, *shape)).operators
    assert set(normalization.RULES) - found == set()
