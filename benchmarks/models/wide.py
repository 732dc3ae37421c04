"""Models of one, ten and fifty megabytes that train in no time: what crosses a line is their weights."""

import torch
from torch import nn

from export.losses import masked_l1
from export.model import MultiTaskModel

TASKS = ("depth", "normals")
WIDTHS = {1: 166, 10: 527, 50: 1178}
"""Channels for so many megabytes."""


def build() -> MultiTaskModel:
    """Return the model of one megabyte."""
    return _wide(WIDTHS[1])


def build_10() -> MultiTaskModel:
    """Return the model of ten megabytes."""
    return _wide(WIDTHS[10])


def build_50() -> MultiTaskModel:
    """Return the model of fifty megabytes."""
    return _wide(WIDTHS[50])


def _wide(width: int) -> MultiTaskModel:
    """Return a model whose encoder's one large layer works on four pixels."""
    torch.manual_seed(0)
    return MultiTaskModel(
        encoder=nn.Sequential(
            nn.Conv2d(3, width, 1, 8), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 8, 1)
        ),
        heads={task: nn.Sequential(nn.Conv2d(8, 1, 1), nn.Upsample(scale_factor=8)) for task in TASKS},
        losses=dict.fromkeys(TASKS, masked_l1),
        example_input=torch.rand(4, 3, 16, 16),
        example_targets={task: torch.rand(4, 1, 16, 16) for task in TASKS},
    )
