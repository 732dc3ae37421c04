"""Samples varied for training, the same way each time that the same sample comes in the same epoch.

A sample is mirrored, moved with its edges repeated, and its image multiplied and raised, as a pure function of the
seed, the epoch and the sample's number. Nothing depends on the batch that it is in, so training that goes on after a
power cut, or in micro-batches, sees the same.
"""

# coverage: every branch

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.augmentation import Augmentation

Array = NDArray[Any]
_SALT = 0x5A17
"""Tells these draws from those of the samples' order."""


def vary(
    asked: Augmentation, x: Array, targets: Mapping[str, Array], samples: Sequence[int], *, seed: int, epoch: int
) -> None:
    """Vary a batch in place: images x (B, C, H, W) and targets (B, …) by task, of these samples."""
    for i, sample in enumerate(samples):
        mirror, down, right, gain, lift = np.random.default_rng([seed, epoch, sample, _SALT]).random(5)
        mirrored = bool(mirror < asked.flip)
        moved = (_pixels(down, asked), _pixels(right, asked))
        if mirrored or any(moved):
            _place(x[i], mirrored, moved, 1)
            for task, stride in asked.strides.items():
                _place(targets[task][i], mirrored, moved, stride)
                if mirrored and task in asked.vectors:
                    np.negative(targets[task][i, 0], out=targets[task][i, 0])
        if asked.jitter:
            np.multiply(x[i], np.float32(1 + (2 * gain - 1) * asked.jitter), out=x[i])
            np.add(x[i], np.float32((2 * lift - 1) * asked.jitter), out=x[i])


def _pixels(drawn: float, asked: Augmentation) -> int:
    """Return a distance in pixels, from a number from 0 to 1: each multiple of the step within reach is as likely."""
    reach = asked.crop // asked.step
    return (int(drawn * (2 * reach + 1)) - reach) * asked.step


def _place(values: Array, mirrored: bool, moved: tuple[int, int], stride: int) -> None:
    """Move and then mirror an array (…, H, W) in place; its edges are repeated where nothing moved in."""
    rows, columns = (
        np.clip(np.arange(size) + distance // stride, 0, size - 1)
        for size, distance in zip(values.shape[-2:], moved, strict=True)
    )
    values[...] = values[..., rows[:, None], columns[::-1] if mirrored else columns]
