"""Labels of a rendered view: exact ones from what the rays hit, and image features from the image itself.

The two edge domains have the form of Omnidata's annotator: a Sobel magnitude of the grey image, and one of the depth's
logarithm. Their factors were fitted to its real views (correlations of 0.99 and 0.95). Letters: H, W pixels.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LUMA = np.array((0.2125, 0.7154, 0.0721), np.float32)
TEXTURE_GAIN = 0.88
OCCLUSION_GAIN = 0.25
KEYPOINT_GAIN = 0.5


def sobel(values: Floats) -> tuple[Floats, Floats]:
    """Return the gradient along x and y (H, W), per pixel, after smoothing across it; the border is repeated."""
    padded = np.pad(values, 1, mode="edge")
    x = padded[:, 2:] - padded[:, :-2]
    y = padded[2:] - padded[:-2]
    across = (x[:-2] + 2 * x[1:-1] + x[2:]) / np.float32(8)
    down = (y[:, :-2] + 2 * y[:, 1:-1] + y[:, 2:]) / np.float32(8)
    return np.asarray(across, np.float32), np.asarray(down, np.float32)


def _magnitude(values: Floats) -> Floats:
    x, y = sobel(values)
    return np.asarray(np.sqrt(2 * (x * x + y * y)), np.float32)


def grey(image: NDArray[np.uint8]) -> Floats:
    """Return the luminance (H, W) of an image (H, W, 3), between 0 and 1."""
    return np.asarray(image.astype(np.float32) @ LUMA / np.float32(255), np.float32)


def edge_texture(luminance: Floats) -> Floats:
    """How sharply the image changes, 0 to 1."""
    return np.asarray(TEXTURE_GAIN * _magnitude(luminance), np.float32)


def edge_occlusion(depth_m: Floats) -> Floats:
    """How sharply the depth changes, in relation to itself, clipped to 0 to 1."""
    return np.asarray((OCCLUSION_GAIN * _magnitude(np.log(depth_m))).clip(0, 1), np.float32)


def keypoints(luminance: Floats) -> Floats:
    """How well each place can be told from its neighbours: the root of the structure tensor's lesser eigenvalue.

    Shi and Tomasi, Good features to track, CVPR 1994.
    """
    x, y = sobel(luminance)
    xx, xy, yy = _smooth(x * x), _smooth(x * y), _smooth(y * y)
    lesser = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    return np.asarray(KEYPOINT_GAIN * np.sqrt(np.maximum(lesser, 0)), np.float32)


def _smooth(values: Floats) -> Floats:
    padded = np.pad(values, 2, mode="edge")
    rows = padded[:-4] + 4 * padded[1:-3] + 6 * padded[2:-2] + 4 * padded[3:-1] + padded[4:]
    return np.asarray(
        (rows[:, :-4] + 4 * rows[:, 1:-3] + 6 * rows[:, 2:-2] + 4 * rows[:, 3:-1] + rows[:, 4:]) / 256, np.float32
    )


def reshading(normals: Floats, rays: Floats) -> Floats:
    """Return the scene in white under a light at the camera: normal times direction to the light, (H, W).

    `normals` (H, W, 3) and `rays` (H, W, 3) are in one frame.
    """
    length = np.sqrt(np.einsum("hwk,hwk->hw", rays, rays))
    return np.asarray((-np.einsum("hwk,hwk->hw", normals, rays) / length).clip(0, 1), np.float32)
