"""Resampling of pixels: means over areas, and nearest pixels where a mean has no meaning.

Letters: c channels, H and W pixels before, S pixels a side after.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]


def shares(length: int, size: int) -> Floats:
    """Return the share of each of `size` pixels that each of `length` covers, (size, length); each row sums to 1."""
    edges = np.arange(size + 1) * (length / size)
    low, high = edges[:-1, None], edges[1:, None]
    start = np.arange(length)
    overlap = np.clip(np.minimum(high, start + 1) - np.maximum(low, start), 0, None)
    return np.asarray(overlap / (length / size), np.float32)


def nearest(length: int, size: int) -> NDArray[np.intp]:
    """Return the index among `length` pixels of the one that holds the centre of each of `size` pixels."""
    return ((np.arange(size) + 0.5) * (length / size)).astype(np.intp)


def resample(pixels: Array, size: int) -> Array:
    """Return pixels (…, H, W) as (…, S, S), of the same type.

    float32: the mean over the area of what is not NaN, and NaN where the nearest pixel is. uint8 with channels, an
    image: the mean over the area, rounded. uint8 without, (H, W), classes: the nearest pixel.
    """
    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels.copy()
    centres = (..., nearest(height, size)[:, None], nearest(width, size)[None])
    if pixels.ndim == 2:
        return np.asarray(pixels[centres])
    across, down = shares(width, size).T, shares(height, size)
    values = pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        return np.rint(down @ values @ across).clip(0, 255).astype(np.uint8)
    there = np.isfinite(values)
    weight = down @ there.astype(np.float32) @ across
    total = down @ np.where(there, values, 0) @ across
    kept = there[centres] & (weight > 0)
    return np.where(kept, total / np.where(kept, weight, 1), np.nan).astype(np.float32)


def unit_length(vectors: Floats) -> Floats:
    """Return vectors (3, …) scaled to length 1; NaN where they are NaN or shorter than 0.1."""
    length = np.sqrt((vectors * vectors).sum(0))
    return np.asarray(vectors / np.where(length > 0.1, length, np.nan), np.float32)
