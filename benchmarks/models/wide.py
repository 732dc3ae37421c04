"""A model of one megabyte that trains in no time: what crosses a line is its weights."""

import torch
from torch import nn

from export.losses import masked_l1
from export.model import MultiTaskModel

TASKS = ("depth", "normals")
WIDTH = 166


def build() -> MultiTaskModel:
    """An encoder whose one large layer works on four pixels."""
    torch.manual_seed(0)
    return MultiTaskModel(
        encoder=nn.Sequential(
            nn.Conv2d(3, WIDTH, 1, 8), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU(), nn.Conv2d(WIDTH, 8, 1)
        ),
        heads={task: nn.Sequential(nn.Conv2d(8, 1, 1), nn.Upsample(scale_factor=8)) for task in TASKS},
        losses=dict.fromkeys(TASKS, masked_l1),
        example_input=torch.rand(4, 3, 16, 16),
        example_targets={task: torch.rand(4, 1, 16, 16) for task in TASKS},
    )
