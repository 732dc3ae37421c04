import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.errors import ExportError  # noqa: E402
from export.lowering import convolution  # noqa: E402

pytestmark = pytest.mark.workstation

CASES = {
    "3x3": (lambda: nn.Conv2d(3, 4, 3), (3, 9, 8)),
    "3x3_padded": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 7, 9)),
    "3x3_padded_more_than_it_reaches": (lambda: nn.Conv2d(3, 4, 3, padding=4), (3, 5, 6)),
    "3x3_without_bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 6, 6)),
    "same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (3, 7, 8)),
    "same_even_kernel": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (3, 7, 8)),
    "reflected": (lambda: nn.Conv2d(3, 4, (5, 3), padding=(3, 0), bias=False), (3, 8, 11)),
    "kernel_larger_than_the_image": (lambda: nn.Conv2d(2, 3, 7, padding=3), (2, 3, 4)),
    "kernel_as_large_as_the_image": (lambda: nn.Conv2d(2, 3, (5, 6)), (2, 5, 6)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), (4, 5, 7)),
    "1x1_padded": (lambda: nn.Conv2d(4, 6, 1, padding=2), (4, 5, 7)),
    "1x1_strided": (lambda: nn.Conv2d(4, 6, 1, stride=2), (4, 9, 8)),
    "1x1_strided_padded": (lambda: nn.Conv2d(4, 6, 1, stride=3, padding=1), (4, 8, 10)),
    "1x1_grouped": (lambda: nn.Conv2d(4, 6, 1, groups=2), (4, 5, 5)),
    "1x1_on_one_pixel": (lambda: nn.Conv2d(4, 6, 1), (4, 1, 1)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 8, 9)),
    "strided_unevenly": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 0)), (3, 10, 13)),
    "stride_larger_than_the_kernel": (lambda: nn.Conv2d(3, 4, 2, stride=5), (3, 14, 13)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=2), (3, 9, 8)),
    "dilated_unpadded": (lambda: nn.Conv2d(3, 4, 3, dilation=(1, 3)), (3, 6, 12)),
    "dilated_strided": (lambda: nn.Conv2d(3, 4, 3, dilation=2, stride=2, padding=1), (3, 11, 10)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 7, 6)),
    "grouped_strided": (lambda: nn.Conv2d(6, 3, 3, groups=3, stride=2), (6, 8, 9)),
    "grouped_dilated": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=1), (4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 7, 6)),
    "depthwise_large_image": (lambda: nn.Conv2d(2, 2, 3, groups=2, padding=1), (2, 33, 34)),
    "depthwise_large_image_strided": (lambda: nn.Conv2d(2, 2, 3, groups=2, padding=1, stride=2), (2, 70, 67)),
    "depthwise_strided": (lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1), (4, 8, 8)),
    "depthwise_strided_odd": (lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1), (4, 9, 11)),
    "depthwise_rows_never_reached": (lambda: nn.Conv2d(4, 4, 2, groups=4, stride=3), (4, 10, 8)),
    "depthwise_dilated": (lambda: nn.Conv2d(4, 4, 3, groups=4, dilation=2), (4, 9, 8)),
    "depthwise_dilated_strided": (lambda: nn.Conv2d(4, 4, (3, 2), groups=4, dilation=2, stride=(2, 3)), (4, 10, 12)),
    "depthwise_multiplied": (lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (3, 7, 6)),
    "depthwise_5x5": (lambda: nn.Conv2d(3, 3, 5, groups=3, padding=2), (3, 6, 9)),
    "depthwise_padded_more_than_it_reaches": (lambda: nn.Conv2d(3, 3, 3, groups=3, padding=3, stride=2), (3, 4, 5)),
    "many_channels": (lambda: nn.Conv2d(9, 5, 3, padding=1), (9, 7, 6)),
    "many_channels_strided": (lambda: nn.Conv2d(9, 5, 3, padding=1, stride=2), (9, 8, 9)),
    "many_channels_large_image": (lambda: nn.Conv2d(9, 5, (3, 2), padding=1), (9, 17, 18)),
    "many_channels_large_image_strided": (lambda: nn.Conv2d(9, 5, 3, padding=1, stride=2), (9, 34, 37)),
    "many_channels_large_image_dilated": (lambda: nn.Conv2d(9, 5, 3, padding=2, dilation=2), (9, 17, 18)),
    "large_image": (lambda: nn.Conv2d(3, 5, 7, padding=3, stride=2), (3, 36, 39)),
    "large_image_stride_one": (lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 17, 18)),
    "grouped_large_image": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 17, 18)),
    "transposed_large_image": (lambda: nn.ConvTranspose2d(9, 12, 3, stride=2, padding=1), (9, 17, 18)),
    "one_channel": (lambda: nn.Conv2d(1, 1, 3, padding=1), (1, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), (3, 5, 6)),
    "transposed_strided": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 5, 6)),
    "transposed_2x2": (lambda: nn.ConvTranspose2d(4, 2, 2, stride=2), (4, 4, 3)),
    "transposed_uneven": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 4), stride=(2, 3), padding=(0, 2), output_padding=(1, 2)),
        (3, 4, 5),
    ),
    "transposed_dilated": (lambda: nn.ConvTranspose2d(3, 4, 3, dilation=2, padding=1), (3, 6, 5)),
    "transposed_grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, padding=1), (4, 6, 5)),
    "transposed_grouped_strided": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, padding=1, output_padding=1),
        (4, 5, 4),
    ),
    "transposed_depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4, stride=2, padding=1), (4, 5, 6)),
    "transposed_depthwise_stride_one": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4, padding=1), (4, 5, 6)),
    "transposed_depthwise_multiplied": (lambda: nn.ConvTranspose2d(3, 6, 2, groups=3, stride=2), (3, 5, 6)),
    "transposed_without_bias": (lambda: nn.ConvTranspose2d(2, 3, 4, stride=4, bias=False), (2, 3, 3)),
    "of_one_dimension": (lambda: nn.Conv1d(3, 4, 3, padding=1, stride=2, dilation=2), (3, 11)),
    "of_one_dimension_grouped": (lambda: nn.Conv1d(4, 6, 3, groups=2, bias=False), (4, 9)),
    "of_one_dimension_depthwise": (lambda: nn.Conv1d(4, 4, 5, padding=2, groups=4), (4, 9)),
    "transposed_of_one_dimension": (lambda: nn.ConvTranspose1d(3, 4, 3, 2, 1, output_padding=1), (3, 6)),
    "of_volumes": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 6)),
    "of_volumes_strided": (lambda: nn.Conv3d(2, 3, (1, 3, 2), (2, 1, 3), (0, 1, 1), bias=False), (2, 5, 6, 7)),
    "of_volumes_dilated": (lambda: nn.Conv3d(2, 3, 2, dilation=(1, 2, 2), padding=1), (2, 4, 5, 6)),
    "of_volumes_grouped": (lambda: nn.Conv3d(4, 6, 2, groups=2, stride=2), (4, 4, 5, 6)),
    "of_volumes_depthwise": (lambda: nn.Conv3d(3, 3, 3, padding=1, groups=3), (3, 4, 5, 4)),
    "transposed_of_volumes": (
        lambda: nn.ConvTranspose3d(4, 6, (2, 3, 2), 2, (0, 1, 0), output_padding=1, groups=2),
        (4, 2, 3, 3),
    ),
    "channels_last": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)).to(
            memory_format=torch.channels_last
        ),
        (3, 6, 7),
    ),
    "channels_last_pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1, groups=2)
        ).to(memory_format=torch.channels_last),
        (3, 6, 7),
    ),
    "padded_asymmetrically": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(3, 4, 3, 2)), (3, 7, 8)),
    "unfolded": (lambda: nn.Unfold((3, 2), dilation=(1, 2), padding=1, stride=(2, 1)), (3, 7, 6)),
    "unfolded_and_folded": (
        lambda: nn.Sequential(nn.Unfold(3, padding=1, stride=2), nn.Tanh(), nn.Fold((7, 8), 3, padding=1, stride=2)),
        (2, 7, 8),
    ),
    "transposed_1x1": (lambda: nn.ConvTranspose2d(4, 3, 1), (4, 3, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_convolution_is_pytorchs(case, same_as_torch):
    make, shape = CASES[case]
    torch.manual_seed(0)
    same_as_torch(make(), shape)


@pytest.mark.parametrize("case", ["3x3_padded", "depthwise_strided", "1x1_strided", "transposed_grouped_strided"])
def test_convolution_whose_input_needs_no_gradient(case, same_as_torch):
    make, shape = CASES[case]
    same_as_torch(make(), shape, input_gradient=False)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolution_with_another_padding_is_right_or_refused(mode, same_as_torch):
    try:
        same_as_torch(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), (2, 5, 6))
    except ExportError as exc:
        assert "cannot be exported" in str(exc)
        assert "net" in str(exc)


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for make, shape in CASES.values():
        found |= translate(make(), torch.randn(2, *shape)).operators
    assert set(convolution.RULES) <= found
