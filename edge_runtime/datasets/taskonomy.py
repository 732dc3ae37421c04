"""Taskonomy's files: their names, the meaning of their pixels, and the task of each domain.

A view is one camera at one point of one building, and each of its domains is one PNG:

    point_<P>_view_<V>_domain_<DOMAIN>.png

The files of a building lie in `<building>/`, anywhere below it, or, as Taskonomy is released, in
`<domain>/<building>/`: a folder with a domain's name does not name the building.

    domain               pixels                                        task
    rgb                  8-bit RGB                                     the image, and autoencoder
    segment_semantic     8 bit, class 0 to 17, 0 is not labelled       segmentation
    depth_zbuffer        16 bit, 1/512 m along the axis, 65535 none    depth
    normal               8-bit RGB, v/127.5 - 1                        normals
    keypoints2d          16 bit, response                              keypoints
    keypoints3d          16 bit, response                              keypoints3d
    edge_texture         16 bit, gradient                              edge_texture
    edge_occlusion       16 bit, gradient of the depth                 edge_occlusion
    reshading            8 bit, light from the camera                  reshading
    principal_curvature  8-bit RGB, 127 is flat, third channel unused  principal_curvature

Normals are in the camera's frame: x to the right, y down, z forward; a surface faces the camera with z < 0.
segment_unsup25d is not a task: its numbers mean nothing from one image to the next.

Source: Zamir et al., Taskonomy, CVPR 2018 (data/README.md of its release); Eftekhar et al., Omnidata, ICCV 2021.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_runtime.datasets.dataset import BYTES_OF_IMAGE, DatasetInvalid

Array = NDArray[Any]
Floats = NDArray[np.float32]

CLASSES = 18
MAX_SIDE = 8192
INVALID_DEPTH = 65535
DEPTH_STEPS_PER_M = 512
FLAT = 127
CURVATURE_STEPS_M = 8.0
"""Steps of a curvature channel for a curvature of one per metre. Taskonomy documents the zero alone."""

FILE_PATTERN = re.compile(r"point_(\d{1,9})_view_(\d{1,9})_domain_([a-z0-9_]+)\.png")
# The name in the files of the released data differs from the name of the folder.
ALIASES = {"segmentsemantic": "segment_semantic"}
MODES: dict[str, tuple[str, ...]] = {
    "rgb": ("RGB",),
    "segment_semantic": ("L", "P"),
    "depth_zbuffer": ("I;16", "I"),
    "normal": ("RGB",),
    "keypoints2d": ("I;16", "I"),
    "keypoints3d": ("I;16", "I"),
    "edge_texture": ("I;16", "I"),
    "edge_occlusion": ("I;16", "I"),
    "reshading": ("RGB", "L"),
    "principal_curvature": ("RGB",),
}
# Folders of a release that do not name the building.
DOMAIN_FOLDERS = {*MODES, *ALIASES, "segment_unsup2d", "segment_unsup25d", "depth_euclidean", "mask_valid"}


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of a building and the files of its domains."""

    building: str
    point: int
    view: int
    files: dict[str, Path]

    @property
    def name(self) -> str:
        """The beginning of its files' names."""
        return f"point_{self.point}_view_{self.view}"


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """The source of a task's labels."""

    domain: str
    scale: str | float
    """The meaning of the stored values: text, or the factor on value / 65535."""
    decode: Callable[[Array, str | float], Array]
    masked: bool = False
    """Pixels without a valid depth have no label."""
    factor: float | None = None
    """What stored integers are multiplied by when they are read."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that are read for the task."""
        return (self.domain, "depth_zbuffer") if self.masked else (self.domain,)


def _classes(pixels: Array, _scale: str | float) -> Array:
    if pixels.max(initial=0) >= CLASSES:
        raise ValueError(f"has class {pixels.max()}, the last one is {CLASSES - 1}")
    return pixels  # (H, W)


def _log_depth(pixels: Array, _scale: str | float) -> Array:
    return np.log1p(pixels[None].astype(np.float32) / DEPTH_STEPS_PER_M)  # (1, H, W)


def _normals(pixels: Array, _scale: str | float) -> Array:
    return pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1  # (3, H, W)


def _response(pixels: Array, scale: str | float) -> Array:
    return pixels[None].astype(np.float32) * np.float32(float(scale) / 65535)  # (1, H, W)


def _shade(pixels: Array, _scale: str | float) -> Array:
    grey = pixels[..., 0] if pixels.ndim == 3 else pixels
    return grey[None].astype(np.float32) / np.float32(255)  # (1, H, W)


def _curvature(pixels: Array, _scale: str | float) -> Array:
    return (pixels[..., :2].transpose(2, 0, 1).astype(np.float32) - FLAT) / np.float32(32)  # (2, H, W)


def _image(pixels: Array, _scale: str | float) -> Array:
    return pixels.transpose(2, 0, 1)  # (3, H, W)


# The factors bring rooms and real views to typical values between 0.1 and 1, so that no task's loss outweighs the
# others'.
TASKS: dict[str, LabelSource] = {
    "autoencoder": LabelSource(domain="rgb", scale=BYTES_OF_IMAGE, decode=_image, factor=1 / 255),
    "depth": LabelSource(domain="depth_zbuffer", scale="log(1 + metres)", decode=_log_depth, masked=True),
    "edge_occlusion": LabelSource(domain="edge_occlusion", scale=16.0, decode=_response, masked=True),
    "edge_texture": LabelSource(domain="edge_texture", scale=8.0, decode=_response),
    "keypoints": LabelSource(domain="keypoints2d", scale=32.0, decode=_response),
    "keypoints3d": LabelSource(domain="keypoints3d", scale=8.0, decode=_response),
    "normals": LabelSource(
        domain="normal", scale="unit vectors: x right, y down, z forward", decode=_normals, masked=True
    ),
    "principal_curvature": LabelSource(
        domain="principal_curvature", scale="(value - 127) / 32", decode=_curvature, masked=True
    ),
    "reshading": LabelSource(domain="reshading", scale="value / 255", decode=_shade, masked=True),
    "segmentation": LabelSource(domain="segment_semantic", scale="classes 1 to 17; 0 is not labelled", decode=_classes),
}


def file_name(point: int, view: int, domain: str) -> str:
    """Return the name of a domain's file."""
    return f"point_{point}_view_{view}_domain_{domain}.png"


def find_views(folder: Path) -> dict[str, list[View]]:
    """Return the views below `folder`, in order, by building; files with other names are ignored.

    Raises DatasetInvalid if there are none, or a view has two files of one domain.
    """
    found: dict[str, dict[tuple[int, int], dict[str, Path]]] = {}
    for path in sorted(folder.rglob("*.png")):
        match = FILE_PATTERN.fullmatch(path.name)
        if match is None:
            continue
        parents = [part for part in path.relative_to(folder).parts[:-1] if part not in DOMAIN_FOLDERS]
        building = parents[0] if parents else folder.resolve().name
        files = found.setdefault(building, {}).setdefault((int(match[1]), int(match[2])), {})
        domain = ALIASES.get(match[3], match[3])
        if domain in files:
            raise DatasetInvalid(f"{path} is a second file for the domain of {files[domain]}")
        files[domain] = path
    if not found:
        raise DatasetInvalid(f"{folder} holds no file named point_<P>_view_<V>_domain_<DOMAIN>.png")
    return {
        building: [
            View(building=building, point=point, view=view, files=views[point, view]) for point, view in sorted(views)
        ]
        for building, views in sorted(found.items())
    }


def read_pixels(path: Path, domain: str) -> Array:
    """Return a domain's pixels, (H, W, 3) or (H, W), uint8 or uint16. Raises DatasetInvalid, naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PNG",))
        with image:
            if max(image.size) > MAX_SIDE:
                raise DatasetInvalid(f"{path} has {image.size} pixels, {MAX_SIDE} a side are allowed")
            if image.mode not in MODES[domain]:
                raise DatasetInvalid(f"{path} has pixels of mode {image.mode}, {domain} has {MODES[domain][0]}")
            pixels = np.asarray(image)
    except FileNotFoundError as exc:
        raise DatasetInvalid(f"{path} is missing") from exc
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as exc:
        if isinstance(exc, DatasetInvalid):
            raise
        raise DatasetInvalid(f"{path} is truncated or not a PNG file: {exc}") from exc
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)


def write_pixels(path: Path, pixels: Array) -> None:
    """Write a domain's pixels, uint8 or uint16, to a sibling file that is then renamed."""
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(pixels).save(part, format="PNG", compress_level=4)
    part.replace(path)


def read_view(view: View, tasks: tuple[str, ...]) -> tuple[Array, dict[str, Array]]:
    """Return the image (3, H, W), uint8, and the labels by task.

    segmentation is (H, W) uint8, autoencoder (3, H, W) uint8, the others (c, H, W) float32, NaN for none.
    Raises DatasetInvalid, naming the file, for a missing domain, a damaged file, or sizes that differ.
    """
    domains = dict.fromkeys(["rgb", *(domain for task in tasks for domain in TASKS[task].domains)])
    pixels: dict[str, Array] = {}
    for domain in domains:
        if domain not in view.files:
            raise DatasetInvalid(
                f"{next(iter(view.files.values())).parent / file_name(view.point, view.view, domain)} is missing"
            )
        pixels[domain] = read_pixels(view.files[domain], domain)
        if pixels[domain].shape[:2] != pixels["rgb"].shape[:2]:
            raise DatasetInvalid(
                f"{view.files[domain]} is {_size(pixels[domain])} pixels, the view's rgb is {_size(pixels['rgb'])}"
            )
    return _image(pixels["rgb"], ""), {task: _decode(view, task, pixels) for task in tasks}


def _size(pixels: Array) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _decode(view: View, task: str, pixels: Mapping[str, Array]) -> Array:
    source = TASKS[task]
    try:
        label = source.decode(pixels[source.domain], source.scale)
    except ValueError as exc:
        raise DatasetInvalid(f"{view.files[source.domain]} {exc}") from exc
    if source.masked:
        label[:, pixels["depth_zbuffer"] == INVALID_DEPTH] = np.nan
    return label


def encode_depth(depth_m: Floats) -> Array:
    """Return depth in metres as 16 bits; NaN becomes the invalid depth."""
    steps = np.rint(np.nan_to_num(depth_m, nan=0.0) * DEPTH_STEPS_PER_M).clip(0, INVALID_DEPTH - 1)
    return np.where(np.isnan(depth_m), INVALID_DEPTH, steps).astype(np.uint16)


def encode_normals(normals: Floats) -> Array:
    """Return unit vectors (H, W, 3) as 8 bits."""
    return np.asarray(np.rint((normals + 1) * 127.5).clip(0, 255), np.uint8)


def encode_response(values: Floats) -> Array:
    """Return values between 0 and 1 as 16 bits."""
    return np.rint(values * 65535).clip(0, 65535).astype(np.uint16)


def encode_curvature(curvature: Floats) -> Array:
    """Return principal curvatures (H, W, 2) in 1/m as 8-bit RGB; the third channel is unused and 127, as if flat."""
    pixels = np.full((*curvature.shape[:2], 3), FLAT, np.uint8)
    pixels[..., :2] = np.rint(FLAT + CURVATURE_STEPS_M * curvature).clip(0, 255)
    return pixels
