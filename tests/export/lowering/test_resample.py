import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import OperatorUnsupported  # noqa: E402
from export.lowering import resample  # noqa: E402

pytestmark = pytest.mark.workstation


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def volume(x):
    return torch.stack([x, 2 * x, 3 - x], 2)


def larger(**options):
    return lambda x: F.interpolate(x, **options)


CASES = {
    "nearest_exact": larger(scale_factor=2, mode="nearest-exact"),
    "nearest_exact_to_a_size": larger(size=(9, 4), mode="nearest-exact"),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, (1, 5)),
    "adaptive_max_pool_of_all": lambda x: F.adaptive_max_pool2d(x * 2, 1),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "max_pool_overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_uneven": lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0)),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "max_pool_ceil_padded": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max_pool_dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool_overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool_uneven": lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 0)),
    "avg_pool_without_padding_counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool_ceil": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "avg_pool_ceil_padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "avg_pool_ceil_without_padding_counted": lambda x: F.avg_pool2d(
        x, 3, 2, 1, ceil_mode=True, count_include_pad=False
    ),
    "avg_pool_divisor": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, divisor_override=5),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive_to_one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "area": larger(size=(4, 3), mode="area"),
    "nearest_twice": larger(scale_factor=2),
    "nearest_by_whole_factors": larger(scale_factor=(2, 3)),
    "nearest_to_a_size": larger(size=(14, 10)),
    "nearest_to_an_odd_size": larger(size=(9, 8)),
    "nearest_smaller": larger(size=(3, 2)),
    "nearest_by_a_fraction": larger(scale_factor=1.5),
    "nearest_by_a_fraction_recomputed": larger(scale_factor=1.7, recompute_scale_factor=True),
    "nearest_by_a_fraction_whose_sizes_are_multiples": larger(scale_factor=2.14),
    "bilinear": larger(scale_factor=2, mode="bilinear"),
    "bilinear_aligned": larger(scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear_to_a_size": larger(size=(11, 4), mode="bilinear"),
    "bilinear_aligned_to_a_size": larger(size=(11, 4), mode="bilinear", align_corners=True),
    "bilinear_by_a_fraction": larger(scale_factor=(1.3, 2.6), mode="bilinear"),
    "linear_of_one_dimension": lambda x: F.interpolate(x.flatten(2), scale_factor=1.7, mode="linear"),
    "linear_aligned": lambda x: F.interpolate(x.flatten(2), size=50, mode="linear", align_corners=True),
    "nearest_of_one_dimension": lambda x: F.interpolate(x.flatten(2), scale_factor=2),
    "nearest_of_one_dimension_to_a_size": lambda x: F.interpolate(x.flatten(2), size=13),
    "adaptive_of_one_dimension": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4),
    "max_pool_places": lambda x: torch.mul(*F.max_pool2d(x, 2, return_indices=True)),
    "max_pool_places_picked": lambda x: x.flatten(2).gather(2, F.max_pool2d(x, 2, return_indices=True)[1].flatten(2)),
    "adaptive_max_pool_uneven": lambda x: torch.mul(*F.adaptive_max_pool2d(x, (3, 2), return_indices=True)),
    "max_pool_undone": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=(7, 5)),
    "max_pool_without_channels": lambda x: F.max_pool2d(x[:, 0], 2) + F.max_pool2d(x.mean(1), 2),
    "avg_pool_without_channels": lambda x: F.avg_pool2d(x[:, 0], 2) + F.adaptive_avg_pool2d(x[:, 1], (3, 2)),
    "max_pool_of_rows": lambda x: F.max_pool1d(x.flatten(1), 2) + F.avg_pool1d(x.flatten(1), 2),
    "lp_pool_without_channels": lambda x: F.lp_pool2d(x[:, 0] + 3, 2, 2),
    "max_pool_of_volumes": lambda x: F.max_pool3d(volume(x), (2, 3, 1), 2, (1, 1, 0), ceil_mode=True),
    "avg_pool_of_volumes": lambda x: F.avg_pool3d(volume(x), (2, 3, 1), 2, (1, 0, 0)),
    "avg_pool_of_volumes_ceil": lambda x: F.avg_pool3d(volume(x), 2, ceil_mode=True),
    "adaptive_pools_of_volumes": lambda x: (
        F.adaptive_avg_pool3d(volume(x), (2, 3, 1)) * F.adaptive_max_pool3d(volume(x), (2, 3, 5)).amax(-1, keepdim=True)
    ),
    "adaptive_max_pool_of_volumes": lambda x: F.adaptive_max_pool3d(volume(x), 1),
    "nearest_of_volumes": lambda x: F.interpolate(volume(x), size=(4, 14, 3)),
    "nearest_exact_of_volumes": lambda x: F.interpolate(volume(x), scale_factor=1.5, mode="nearest-exact"),
    "linear_of_volumes": lambda x: F.interpolate(volume(x), scale_factor=1.5, mode="trilinear"),
    "nearest_exact_of_one_dimension": lambda x: F.interpolate(x.flatten(2), size=13, mode="nearest-exact"),
    "bilinear_antialias": larger(scale_factor=0.5, mode="bilinear", antialias=True),
    "bicubic_antialias": larger(size=(4, 9), mode="bicubic", antialias=True),
    "bicubic": larger(scale_factor=2, mode="bicubic"),
    "bicubic_aligned_to_a_size": larger(size=(5, 12), mode="bicubic", align_corners=True),
}


@pytest.mark.parametrize("case", CASES)
def test_resampling_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn(CASES[case]), (3, 7, 5))


def test_nearest_by_a_rounded_scale_is_pytorchs(same_as_torch):
    """Sizes 5 → 12 and 2 → 4 of the scale 2.4: twice as large along one side, though not every pixel is there twice."""
    same_as_torch(Fn(larger(scale_factor=2.4)), (2, 5, 2))


@pytest.mark.parametrize("function", [lambda x: F.max_pool1d(x.flatten(2), 2), lambda x: F.avg_pool1d(x.flatten(2), 2)])
def test_pool_of_one_dimension_is_pytorchs(function, same_as_torch):
    same_as_torch(Fn(function), (3, 6, 4))


def test_fractional_max_pool_is_refused_with_a_substitute(translate):
    with pytest.raises(OperatorUnsupported, match="nn.MaxPool2d") as caught:
        translate(nn.FractionalMaxPool2d(2, output_size=3), torch.randn(2, 3, 8, 6))
    assert caught.value.module == "net"


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for function in CASES.values():
        found |= translate(Fn(function), torch.randn(2, 3, 7, 5)).operators
    assert set(resample.RULES) - found == set()
