"""A U-Net of one's own in one file: batch normalisation, bilinear upsampling, skip connections, two tasks.

    python -m export compile docs/examples/unet.py:build --out bundle

The encoder returns its stages as a tuple; every head gets all of them (Ronneberger et al., MICCAI 2015).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from export.losses import cross_entropy, masked_l1
from export.model import MultiTaskModel

WIDTHS = (8, 16, 32, 48)
SIZE = 64  # pixels a side, a multiple of 8
CLASSES = 18


class Twice(nn.Sequential):
    """Two 3×3 convolutions, each normalised by the batch."""

    def __init__(self, inputs, outputs):
        layers = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class Encoder(nn.Module):
    """(B, 3, H, W) to the stages (B, 8, H, W), (B, 16, H/2, W/2), (B, 32, H/4, W/4), (B, 48, H/8, W/8)."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(Twice(a, b) for a, b in pairwise((3, *WIDTHS)))

    def forward(self, x):
        found = []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            found.append(x)
        return tuple(found)


class Decoder(nn.Module):
    """The stages back to a map of `outputs` channels: twice as large, beside the stage of that size, convolved."""

    def __init__(self, outputs):
        super().__init__()
        steps = zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)  # from the deepest up: (48, 32), (32, 16), (16, 8)
        self.steps = nn.ModuleList(Twice(below + skip, skip) for below, skip in steps)
        self.out = nn.Conv2d(WIDTHS[0], outputs, 1)

    def forward(self, stages):
        x = stages[-1]
        for step, skip in zip(self.steps, stages[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = step(torch.cat([skip, x], 1))
        return self.out(x)


def build():
    """Depth, known where it is not NaN, and classes of pixels, of which 0 is no label."""
    return MultiTaskModel(
        encoder=Encoder(),
        heads={"depth": Decoder(1), "segmentation": Decoder(CLASSES)},
        losses={"depth": masked_l1, "segmentation": cross_entropy(ignore=0)},
        example_input=torch.rand(4, 3, SIZE, SIZE),
        example_targets={
            "depth": torch.rand(4, 1, SIZE, SIZE),
            "segmentation": torch.randint(0, CLASSES, (4, SIZE, SIZE)),
        },
    )
