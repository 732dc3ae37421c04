"""Predictions beside the truth, as pictures for the report's page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from broker_server.report.html import Picture, PictureRow

Array = NDArray[Any]
_CLASSES = 20
DENSE = 2
"""Dimensions from which on labels are pictures."""


def load(path: Path) -> dict[str, Array]:
    """Return the arrays of a file that `python -m edge_runtime predict` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def rows(found: Mapping[str, Mapping[str, Array]]) -> list[PictureRow]:
    """Return a row for each task, with image, label and prediction for each place in `found`, by its name."""
    tasks = sorted({name.partition(".")[2] for arrays in found.values() for name in arrays if "prediction." in name})
    result = []
    for task in tasks:
        pictures = []
        for place, arrays in found.items():
            if f"prediction.{task}" not in arrays or f"label.{task}" not in arrays:
                continue
            label, prediction = arrays[f"label.{task}"][0], arrays[f"prediction.{task}"][0]
            if label.ndim < DENSE or prediction.ndim < DENSE:  # nothing that is a picture
                continue
            image = arrays.get("image", np.empty((1, 0)))[0]
            pictures += [
                *([Picture(title=place, image=_colour(image))] if image.shape[:1] == (3,) and image.ndim == 3 else []),
                Picture(title="truth", image=draw(label, like=label)),
                Picture(title="prediction", image=draw(prediction, like=label)),
            ]
        if pictures:
            result.append(PictureRow(title=task, pictures=tuple(pictures)))
    return result


def draw(values: Array, *, like: Array) -> Array:
    """Return a label or prediction (C, H, W), or classes (H, W), as colours (H, W, 3), 0 to 1, on the label's scale."""
    if like.ndim == 2:
        classes = values if values.ndim == 2 else values[1:].argmax(axis=0) + 1  # class 0 is never predicted
        colours = mpl.colormaps["tab20"](classes.astype(int) % _CLASSES)[..., :3]
        return np.where((classes == 0)[..., None], 0.0, colours)
    known = like[np.isfinite(like)]
    if not known.size:  # the image has no label: the prediction has a scale of its own
        known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    if len(values) == 1:
        return np.where(np.isnan(scaled[0])[..., None], 1.0, mpl.colormaps["viridis"](scaled[0])[..., :3])
    if len(values) == 2:
        scaled = np.concatenate([scaled, np.zeros_like(scaled[:1])])
    return _colour(np.nan_to_num(scaled[:3], nan=1.0))


def _colour(image: Array) -> Array:
    """Return an image (3, H, W) as (H, W, 3), clipped to 0 to 1."""
    return np.clip(np.moveaxis(image, 0, -1), 0, 1)
