"""A convolutional shared encoder in the manner of ConvNeXt (Liu et al., CVPR 2022), divided as FedBone divides it.

The stem is the network's own: patches of 4 × 4 pixels, embedded and normalised. The encoder has three stages of blocks,
each of half the size and twice the channels of the one before. Normalisation is by layers, so nothing depends on the
batch, and neither place keeps state.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.model import MultiTaskModel
from export.models.adaptation import KIND, assemble
from export.models.xception import NINE

PATCH = 4


class Norm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        result: Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


class ConvNeXtBlock(nn.Module):
    """(B, C, H, W) to the same shape: 7 × 7 for each channel, then channels mixed in four times as many."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus its change, scaled for each channel."""
        last = self.around(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        result: Tensor = x + (self.scale * self.mix(self.norm(last))).permute(0, 3, 1, 2)
        return result


class ConvNeXtEncoder(nn.Sequential):
    """(B, C, H, W) to (B, 4·C, H/4, W/4)."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        first, second, third = depths
        super().__init__(
            *(ConvNeXtBlock(width) for _ in range(first)),
            Norm(width),
            nn.Conv2d(width, 2 * width, 2, 2),
            *(ConvNeXtBlock(2 * width) for _ in range(second)),
            Norm(2 * width),
            nn.Conv2d(2 * width, 4 * width, 2, 2),
            *(ConvNeXtBlock(4 * width) for _ in range(third)),
            Norm(4 * width),
        )


def make(tasks: Sequence[str], *, width: int, depths: Sequence[int], size: int, batch: int = 2) -> MultiTaskModel:
    """Return a model for dense tasks of MAS, and `kind`; inputs of `size` × `size` pixels, a multiple of 16."""
    stem = nn.Sequential(nn.Conv2d(3, width, PATCH, PATCH), Norm(width))
    encoder = ConvNeXtEncoder(width, depths)
    return assemble(stem, encoder, tasks, width=4 * width, scale=4 * PATCH, size=size, batch=batch)


def build() -> MultiTaskModel:
    """Two dense tasks and the class of an image, 64 pixels."""
    return make(("depth", "segmentation", KIND), width=24, depths=(1, 1, 2), size=64)


def build_nine() -> MultiTaskModel:
    """All nine tasks of MAS, 64 pixels."""
    return make(NINE, width=32, depths=(2, 2, 4), size=64)


def build_general() -> MultiTaskModel:
    """Nine tasks over the 34 million parameters of ConvNeXt-Small's first three stages, 224 pixels."""
    return make(NINE, width=96, depths=(3, 3, 27), size=224)
