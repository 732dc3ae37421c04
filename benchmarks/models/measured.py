"""The models of `make bench-export`, at full width and 224 pixels: `benchmarks/models/measured.py:FUNCTION`.

The example batch is small, so that making a bundle does not take longer than measuring it.
"""

import torch
from torch import nn

from benchmarks.models import convolutional
from export.losses import cross_entropy
from export.model import MultiTaskModel
from export.models import xception

SIZE = 224
CLASSES = 1000


def resnet18() -> MultiTaskModel:
    """ResNet-18 and its classifier."""
    return _classified(*convolutional.resnet18())


def mobilenet_v2() -> MultiTaskModel:
    """MobileNetV2 and its classifier, without dropout."""
    return _classified(*convolutional.mobilenet_v2())


def xception_five() -> MultiTaskModel:
    """The small Xception of MAS with the heads of five tasks."""
    return xception.make(xception.FIVE, width=1.0, size=SIZE, batch=2)


def xception_nine() -> MultiTaskModel:
    """The small Xception of MAS with the heads of all nine tasks."""
    return xception.make(xception.NINE, width=1.0, size=SIZE, batch=2)


def xception_one() -> MultiTaskModel:
    """The small Xception of MAS with one head, of depth."""
    return xception.make(("depth",), width=1.0, size=SIZE, batch=2)


def _classified(encoder: nn.Module, width: int) -> MultiTaskModel:
    return MultiTaskModel(
        encoder=encoder,
        heads={"kind": convolutional.Classifier(width, CLASSES)},
        losses={"kind": cross_entropy()},
        example_input=torch.randn(2, 3, SIZE, SIZE),
        example_targets={"kind": torch.randint(0, CLASSES, (2,))},
    )
