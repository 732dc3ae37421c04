"""A camera in a room: where it stands, where it looks, and the rays of its pixels.

The camera's frame has x to the right, y down and z forward. Letters: N pixels, row by row.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_server.simulation.rooms.raycast import cast
from broker_server.simulation.rooms.scene import Scene
from broker_server.simulation.rooms.style import Style

Floats = NDArray[np.float32]

CLEAR_M = 0.45
CANDIDATES = 8
PROBE = 9
"""Rays a side with which a candidate's view is judged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera."""

    place: Floats  # (3,) in the world
    axes: Floats  # (3, 3) rows: right, down and forward, in the world
    slope: float
    """Tangent of half the field of view."""

    def rays(self, columns: Floats, rows: Floats) -> Floats:
        """Directions (N, 3) in the world, of depth 1, through points of the image between -1 and 1."""
        plane = np.stack([columns * self.slope, rows * self.slope, np.ones_like(columns)], 1)
        return np.asarray(plane @ self.axes, np.float32)


def pixel_centres(size: int) -> tuple[Floats, Floats]:
    """Columns and rows (N,) of a square image's pixel centres, between -1 and 1."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return columns.ravel(), rows.ravel()


def aim(place: Floats, target: Floats, slope: float) -> Camera:
    """Return a camera without roll at one point, looking at another that is not straight above or below."""
    forward = target - place
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, np.array((0, 0, 1), np.float32))
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward]).astype(np.float32)
    return Camera(place=place.astype(np.float32), axes=axes, slope=slope)


def draw_camera(scene: Scene, style: Style, rng: np.random.Generator) -> Camera:
    """Return a camera with room before it: the best of a few places, by how far it sees and how many things."""
    slope = math.tan(math.radians(style.field_of_view_deg + rng.uniform(-5, 5)) / 2)
    columns, rows = pixel_centres(PROBE)
    best: tuple[float, Camera] | None = None
    for _ in range(CANDIDATES):
        camera = _candidate(scene, style, rng, slope)
        hits = cast(scene, camera.place, camera.rays(columns, rows))
        near = float(np.quantile(hits.distance, 0.1))
        things = len(np.unique(hits.solid)) / PROBE
        score = min(near, 1.2) + things + (0 if near > CLEAR_M else -5)
        if best is None or score > best[0]:
            best = (score, camera)
    assert best is not None
    return best[1]


def _candidate(scene: Scene, style: Style, rng: np.random.Generator, slope: float) -> Camera:
    width, depth, height = (float(side) for side in scene.size)
    # From near one side of the room towards the other, as a person with a camera would.
    heading = rng.uniform(0, 2 * math.pi)
    away = rng.uniform(0.25, 0.42)
    x = width * (0.5 + away * math.cos(heading))
    y = depth * (0.5 + away * math.sin(heading))
    z = min(style.camera_height_m + rng.uniform(-0.15, 0.15), height - 0.3)
    yaw = heading + math.pi + rng.uniform(-0.6, 0.6)
    pitch = math.radians(style.pitch_deg + rng.uniform(-8, 8))
    forward = (math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch))
    place = np.array((x, y, z), np.float32)
    return aim(place, place + np.array(forward, np.float32), slope)
