import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.lowering import batch_normalization  # noqa: E402

pytestmark = pytest.mark.workstation


def drawn(module):
    """Weights that are not ones, and running statistics of something."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + 0.5)
    return module


class Frozen(nn.Module):
    """Normalises by its running statistics, in training too."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm.eval()

    def forward(self, x):
        return self.norm(x) * 2


CASES = {
    "image": (lambda: nn.BatchNorm2d(6), (6, 5, 7)),
    "large_image": (lambda: nn.BatchNorm2d(4), (4, 17, 18)),
    "large_image_without_parameters": (lambda: nn.BatchNorm2d(4, affine=False), (4, 17, 18)),
    "rows": (lambda: nn.BatchNorm1d(6), (6, 9)),
    "volume": (lambda: nn.BatchNorm3d(4), (4, 3, 5, 2)),
    "without_statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 5, 6)),
    "another_epsilon": (lambda: nn.BatchNorm2d(4, eps=0.1), (4, 5, 6)),
    "frozen": (lambda: Frozen(nn.BatchNorm2d(4)), (4, 5, 6)),
    "frozen_without_parameters": (lambda: Frozen(nn.BatchNorm2d(4, affine=False)), (4, 17, 18)),
}


@pytest.mark.parametrize("case", CASES)
def test_batch_normalization_is_pytorchs(case, same_as_torch):
    make, shape = CASES[case]
    torch.manual_seed(0)
    same_as_torch(drawn(make()), shape)


def test_batch_normalization_of_vectors_is_pytorchs(same_as_torch):
    """Rows of a sample as samples: a batch of one vector has no variance, and PyTorch refuses it."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = drawn(nn.BatchNorm1d(6))

        def forward(self, x):
            return self.norm(x.reshape(-1, 6)).reshape(x.shape)

    same_as_torch(Rows(), (7, 6))


@pytest.mark.parametrize("case", ["image", "large_image", "frozen"])
def test_batch_normalization_whose_input_needs_no_gradient(case, same_as_torch):
    make, shape = CASES[case]
    same_as_torch(drawn(make()), shape, input_gradient=False)


def test_batch_normalization_of_far_away_values(same_as_torch):
    """A mean that is large against the deviation: no cancellation of squares."""
    same_as_torch(nn.BatchNorm2d(4), (4, 17, 18), draw=lambda shape: torch.randn(shape) + 30)


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for make, shape in CASES.values():
        found |= translate(make(), torch.randn(2, *shape)).operators
    assert set(batch_normalization.RULES) - found == set()
