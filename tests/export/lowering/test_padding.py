import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.lowering import padding  # noqa: E402

pytestmark = pytest.mark.workstation

CASES = {
    "reflected_rows": (lambda: nn.ReflectionPad1d((1, 3)), (3, 6)),
    "reflected": (lambda: nn.ReflectionPad2d((1, 2, 3, 0)), (3, 5, 4)),
    "reflected_columns_alone": (lambda: nn.ReflectionPad2d((0, 2, 0, 0)), (3, 5, 4)),
    "repeated_rows": (lambda: nn.ReplicationPad1d((0, 5)), (3, 6)),
    "repeated": (lambda: nn.ReplicationPad2d((4, 2, 0, 5)), (3, 5, 4)),
    "reflected_volumes": (lambda: nn.ReflectionPad3d((1, 2, 3, 0, 1, 1)), (2, 3, 5, 4)),
    "repeated_volumes": (lambda: nn.ReplicationPad3d((1, 0, 0, 3, 4, 1)), (2, 3, 5, 4)),
    "cut_off_and_repeated": (lambda: nn.ReplicationPad2d((-4, 5, 1, -2)), (3, 5, 4)),
    "without_channels": (lambda: nn.ReflectionPad2d((1, 2, 3, 0)), (5, 4)),
    "convolution_reflected": (lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"), (3, 5, 4)),
    "convolution_repeated": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), (3, 5, 4)),
    "convolution_circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 5, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_padding_is_pytorchs(case, same_as_torch):
    make, shape = CASES[case]
    torch.manual_seed(0)
    same_as_torch(make(), shape)


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for make, shape in CASES.values():
        found |= translate(make(), torch.randn(2, *shape)).operators
    assert set(padding.RULES) - found == set()
