"""Transfer learning: a backbone that is trained already stays as it is, and each task trains a head.

    python -m export compile docs/examples/frozen_backbone.py:build --out bundle

`requires_grad_(False)` keeps the backbone's weights, `eval()` its running statistics. Its numbers are then fixed: a
device gets them once and never sends them, they take no gradient and no momentum, and there is no backward pass through
them. `build_tuned` also trains the last block, whose normalisation goes on with the statistics that it has.
"""

import torch
from torch import nn

from export.losses import cross_entropy, masked_l1
from export.model import MultiTaskModel

SIZE = 64  # pixels a side
CLASSES = 18


class Block(nn.Sequential):
    """(B, C, H, W) to (B, outputs, H/2, W/2)."""

    def __init__(self, inputs, outputs):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )


def backbone():
    """Return a network as it comes from elsewhere; load its weights here: `load_state_dict(torch.load(…))`."""
    return nn.Sequential(Block(3, 16), Block(16, 32), Block(32, 64))


def make(encoder):
    """Return two tasks over a backbone: depth, and classes of pixels, of which 0 is no label."""

    def head(outputs):
        return nn.Sequential(
            nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=8), nn.Conv2d(32, outputs, 1)
        )

    return MultiTaskModel(
        encoder=encoder,
        heads={"depth": head(1), "segmentation": head(CLASSES)},
        losses={"depth": masked_l1, "segmentation": cross_entropy(ignore=0)},
        example_input=torch.rand(4, 3, SIZE, SIZE),
        example_targets={
            "depth": torch.rand(4, 1, SIZE, SIZE),
            "segmentation": torch.randint(0, CLASSES, (4, SIZE, SIZE)),
        },
    )


def build():
    """Return a backbone that is fixed as a whole."""
    return make(backbone().requires_grad_(False).eval())


def build_tuned():
    """Return a backbone whose last block is trained, all of it in evaluation mode."""
    encoder = backbone().requires_grad_(False).eval()
    encoder[-1].requires_grad_(True)
    return make(encoder)
