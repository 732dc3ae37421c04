"""Keyword spotting: which digit was said, how long, how high and how loud, from log spectrograms (1, 40, 40).

    python -m export compile docs/examples/keywords.py:build --out bundle
    python -m edge_runtime train --bundle bundle --data data/speaker --epochs 20 --optimizer adamw --lr 0.003

A device has the recordings of its speaker: image.npy (N, 1, 40, 40), float32, digit.npy (N,), and one number a sample
for each of the other tasks, all standardised. The network is a small depthwise separable one, after DS-CNN (Zhang et
al., "Hello Edge: keyword spotting on microcontrollers", arXiv 1711.07128).
"""

import torch
from torch import nn

from export.losses import cross_entropy, l2
from export.model import MultiTaskModel

BANDS, FRAMES, WIDTH, DIGITS = 40, 40, 48, 10
NUMBERS = ("centroid", "duration", "loudness", "pitch")


def separable(width):
    """One block of a depthwise and a pointwise convolution."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.GroupNorm(4, width),
        nn.ReLU(),
    )


def build():
    """Ask for the digit, and for four numbers."""
    encoder = nn.Sequential(
        nn.Conv2d(1, WIDTH, (10, 4), stride=2, padding=(4, 1), bias=False),
        nn.GroupNorm(4, WIDTH),
        nn.ReLU(),
        *(separable(WIDTH) for _ in range(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    batch = 4
    return MultiTaskModel(
        encoder=encoder,
        heads={"digit": nn.Linear(WIDTH, DIGITS), **{task: nn.Linear(WIDTH, 1) for task in NUMBERS}},
        losses={"digit": cross_entropy(), **dict.fromkeys(NUMBERS, l2)},
        example_input=torch.rand(batch, 1, BANDS, FRAMES),
        example_targets={
            "digit": torch.randint(0, DIGITS, (batch,)),
            **{task: torch.rand(batch, 1) for task in NUMBERS},
        },
    )
