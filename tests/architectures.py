"""Whole architectures, narrow and small: what tests of parity and of training compile. They need torch."""

import attention as tokens
import torch
from torch import nn

from benchmarks.models import convolutional as nets
from export.losses import cross_entropy, l2, masked_l1
from export.model import MultiTaskModel
from export.models import convnext, xception
from export.models import vit as divided


def classified(encoder, width, size, batch):
    """Two tasks of a backbone: classes and a number."""
    return MultiTaskModel(
        encoder=encoder,
        heads={"kind": nets.Classifier(width, 5), "value": nets.Classifier(width, 1)},
        losses={"kind": cross_entropy(), "value": l2},
        example_input=torch.randn(batch, 3, size, size),
        example_targets={"kind": torch.randint(0, 5, (batch,)), "value": torch.rand(batch, 1)},
    )


def dense(encoder, head, size, batch):
    """Two dense tasks: classes of pixels, some ignored, and a depth that is not known everywhere."""
    depth = torch.rand(batch, 1, size, size)
    return MultiTaskModel(
        encoder=encoder,
        heads={"depth": head(1), "parts": head(4)},
        losses={"depth": masked_l1, "parts": cross_entropy(ignore=0)},
        example_input=torch.randn(batch, 3, size, size),
        example_targets={
            "depth": torch.where(depth < 0.2, float("nan"), depth),
            "parts": torch.randint(0, 4, (batch, size, size)),
        },
    )


def vit():
    return MultiTaskModel(
        encoder=tokens.ViT(),
        heads={"kind": tokens.FirstToken(16, 5)},
        losses={"kind": cross_entropy(smoothing=0.1)},
        example_input=torch.randn(4, 3, 16, 16),
        example_targets={"kind": torch.randint(0, 5, (4,))},
    )


def deeplab():
    stem = nn.Sequential(nets.conv(3, 8, stride=2), nets.conv(8, 16, stride=2), nets.conv(16, 16, dilation=2))
    return dense(stem, lambda outputs: nets.Aspp(16, outputs), 32, 3)


ARCHITECTURES = {
    "resnet18": lambda: classified(*nets.resnet18(width=8), 64, 6),
    "mobilenet_v2": lambda: classified(*nets.mobilenet_v2(width=0.25, last=96), 64, 6),
    "mobilenet_v3_small": lambda: classified(*nets.mobilenet_v3_small(width=0.5), 64, 6),
    "efficientnet_b0": lambda: classified(*nets.efficientnet_b0(width=0.25), 64, 6),
    "unet": lambda: dense(nets.UNetEncoder(), nets.UNetHead, 24, 3),
    "deeplab": deeplab,
    "vit": vit,
    "swin": lambda: classified(tokens.Swin(), 12, 16, 4),
    "vit_with_stem": lambda: divided.make(("depth", "kind"), width=16, heads=2, depth=2, size=16, patch=4),
    "convnext_with_stem": lambda: convnext.make(("normals", "segmentation"), width=8, depths=(1, 1, 1), size=32),
    "xception": lambda: xception.make(("depth", "segmentation"), width=1.0, size=32, batch=2),
}
