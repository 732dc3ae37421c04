"""Whether and how the samples of a bundle can be varied in training: mirrored, moved, brighter or darker.

An image and its dense labels are mirrored and moved together. Labels are dense if their last two dimensions are the
image's, divided by one whole number. Of a whole image, class numbers and probabilities are known to stay as they are;
any other label, as a coordinate or an angle, may change in a way that nobody has said.
"""

# coverage: every branch

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime.wire.errors import AugmentationImpossible
from edge_runtime.wire.manifest import Manifest, Task
from edge_runtime.wire.training import Optimization


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How samples are varied."""

    flip: float
    """The share of samples that are mirrored left to right."""
    crop: int
    """The most pixels that a sample is moved by, up or down and left or right; a multiple of `step`."""
    step: int
    """Samples are moved by a multiple of this many pixels, so that the coarsest labels move by whole elements."""
    jitter: float
    strides: Mapping[str, int]
    """Pixels of the image for an element of the labels, by task with dense labels."""
    vectors: frozenset[str]
    """Tasks whose labels are vectors: mirrored, their first component changes its sign."""


def augmentation(manifest: Manifest, settings: Optimization) -> Augmentation | None:
    """Return how samples of a bundle's tasks are varied; None if they are not.

    Raises AugmentationImpossible, which names the task, where it is not known what becomes of labels.
    """
    if not (settings.flip or settings.crop or settings.jitter):
        return None
    image = manifest.input
    if image is None:
        raise AugmentationImpossible(
            f"flip, crop and jitter are of images, the bundle's inputs are {', '.join(manifest.inputs)}: leave them out"
        )
    strides: dict[str, int] = {}
    if settings.flip or settings.crop:
        if len(image.shape) != 3:
            raise AugmentationImpossible(
                f"flip and crop are of images (C, H, W), the bundle's input is {image.shape}: leave them out"
            )
        for task in manifest.tasks:
            stride = _stride(image.shape[1:], task.target.shape)
            if stride is not None:
                strides[task.name] = stride
            elif not _stays(task):
                raise AugmentationImpossible(
                    f"flip and crop: it is not known what they make of labels of {task.name}, of shape "
                    f"{task.target.shape}: leave them out, or train without {task.name}"
                )
    step = math.lcm(*strides.values())
    crop = settings.crop // step * step
    if 2 * settings.crop >= min(image.shape[1:], default=2 * settings.crop + 1):
        raise AugmentationImpossible(
            f"crop: {settings.crop} pixels are half of the image or more, which is {image.shape[1:]}"
        )
    return Augmentation(
        flip=settings.flip,
        crop=crop,
        step=step,
        jitter=settings.jitter,
        strides=strides,
        vectors=frozenset(task.name for task in manifest.tasks if task.metric == "angular_error_deg"),
    )


def _stride(image: tuple[int, ...], labels: tuple[int, ...]) -> int | None:
    """Return the pixels for an element of dense labels; None for labels that are not dense."""
    if len(labels) < 2:
        return None
    (height, width), (rows, columns) = image, labels[-2:]
    stride = height // rows if rows else 0
    return stride if stride and (rows * stride, columns * stride) == (height, width) else None


def _stays(task: Task) -> bool:
    """Return whether the label of a whole image is known to be the same for its mirror image."""
    return task.target.dtype == "int64" or (task.labels is not None and task.labels.bounds == (0.0, 1.0))
