"""The small Xception of MAS (Zhuang et al., ICCV 2023, section 4.1 and its released code), with a width factor.

Full width has the paper's channels: an encoder of 3.9 million parameters from (3, H, W) to (256, H/16, W/16) and heads
of 0.04 million (the released code has 4.1 and 0.12). Normalisation is by groups, so that a device may cut a batch into
micro-batches without changing what it learns.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from export.losses import l1, masked_l1, pixel_cross_entropy
from export.model import MultiTaskModel
from export.prediction import Loss

CLASSES = 18
CHANNELS = {
    "segmentation": CLASSES,
    "depth": 1,
    "normals": 3,
    "keypoints": 1,
    "edge_texture": 1,
    "edge_occlusion": 1,
    "reshading": 1,
    "principal_curvature": 2,
    "autoencoder": 3,
    "keypoints3d": 1,
}
LOSSES: dict[str, Loss] = {
    **dict.fromkeys(CHANNELS, masked_l1),
    "segmentation": pixel_cross_entropy,
    "keypoints": l1,
    "edge_texture": l1,
    "autoencoder": l1,
    "keypoints3d": l1,
}
METRICS = {"normals": "angular_error_deg"}
"""The metrics that are not the usual ones for a loss: mIoU of segmentation, RMSE."""
FIVE = ("segmentation", "depth", "normals", "keypoints", "edge_texture")
NINE = (*FIVE, "edge_occlusion", "reshading", "principal_curvature", "autoencoder")
VIEWS = ("depth", "normals", "reshading", "edge_texture", "edge_occlusion")
"""Five tasks that the real sample views have labels for."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


class Separable(nn.Sequential):
    """A depthwise 3×3 convolution and a pointwise one, normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            _norm(outputs),
        )


class Down(nn.Module):
    """Half the size, more channels: two separable convolutions beside a strided 1×1 one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Separable(inputs, outputs)
        self.second = Separable(outputs, outputs, stride=2)
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H/2, W/2)."""
        return F.relu(self.second(F.relu(self.first(x))) + self.skip(x))


class Residual(nn.Module):
    """Three separable convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Separable(channels, channels) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = x
        for layer in self.layers:
            y = layer(F.relu(y))
        return x + y


class XceptionEncoder(nn.Sequential):
    """(B, 3, H, W) to (B, 256·width, H/16, W/16)."""

    def __init__(self, width: float) -> None:
        a, b, c, d, e, f = (_scaled(n, width) for n in (24, 48, 96, 192, 512, 256))
        super().__init__(
            nn.Conv2d(3, a, 3, 2, 1, bias=False),
            _norm(a),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, 1, 1, bias=False),
            _norm(b),
            nn.ReLU(),
            Down(b, c),
            Down(c, d),
            Down(d, e),
            *(Residual(e) for _ in range(4)),
            Separable(e, f),
            nn.ReLU(),
        )


class Head(nn.Sequential):
    """(B, 256·width, H/16, W/16) to (B, outputs, H, W)."""

    def __init__(self, outputs: int, width: float) -> None:
        sizes = [_scaled(n, width) for n in (256, 96, 96, 64, 64, 32, 32)]
        layers: list[nn.Module] = [Separable(sizes[0], sizes[1]), nn.ReLU()]
        for inputs, channels in pairwise(sizes[2:]):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), Separable(inputs, channels), nn.ReLU()]
        last = sizes[-1]
        layers += [nn.Conv2d(last, last, 3, 1, 1, groups=last, bias=False), nn.Conv2d(last, outputs, 1)]
        super().__init__(*layers)


def _scaled(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))


def make(tasks: Sequence[str], *, width: float, size: int, batch: int = 4) -> MultiTaskModel:
    """Return a model for these tasks, with inputs of `size` × `size` pixels (a multiple of 16)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, size, size, generator=generator)
    targets = {}
    for task in tasks:
        if task == "segmentation":
            targets[task] = torch.randint(0, CLASSES, (batch, size, size), generator=generator)
        else:
            targets[task] = torch.rand(batch, CHANNELS[task], size, size, generator=generator)
    return MultiTaskModel(
        encoder=XceptionEncoder(width),
        heads={task: Head(CHANNELS[task], width) for task in tasks},
        losses={task: LOSSES[task] for task in tasks},
        example_input=image,
        example_targets=targets,
        metrics={task: METRICS[task] for task in tasks if task in METRICS},
    )


def build() -> MultiTaskModel:
    """Five tasks, a quarter of the width, 64 pixels: what `make demo` trains."""
    return make(FIVE, width=0.25, size=64)


def build_nine() -> MultiTaskModel:
    """All nine tasks of MAS, a quarter of the width, 64 pixels."""
    return make(NINE, width=0.25, size=64)


def build_small() -> MultiTaskModel:
    """Five tasks, a quarter of the width, 32 pixels: for comparisons of many runs."""
    return make(FIVE, width=0.25, size=32)


def build_small_nine() -> MultiTaskModel:
    """Nine tasks, a quarter of the width, 32 pixels."""
    return make(NINE, width=0.25, size=32)


def build_one() -> MultiTaskModel:
    """Depth alone, a quarter of the width, 64 pixels."""
    return make(("depth",), width=0.25, size=64)


def build_views() -> MultiTaskModel:
    """Return the five tasks of the real sample views, a quarter of the width, 64 pixels."""
    return make(VIEWS, width=0.25, size=64)


def build_full() -> MultiTaskModel:
    """Five tasks at the paper's width and 256 pixels."""
    return make(FIVE, width=1.0, size=256, batch=2)


def build_full_nine() -> MultiTaskModel:
    """Nine tasks at the paper's width and 256 pixels."""
    return make(NINE, width=1.0, size=256, batch=2)
