"""How a scene's points look: texture under lamps and daylight with hard shadows, and less ambient light in corners."""

import numpy as np
from numpy.typing import NDArray

from broker_server.simulation.rooms.raycast import Hits, lit
from broker_server.simulation.rooms.scene import Scene
from broker_server.simulation.rooms.texture import albedo

Floats = NDArray[np.float32]

CORNER_M = 0.35
CORNER_SHADE = 0.45
EXPOSURE = 0.5


def shade(scene: Scene, hits: Hits, pixel_m: Floats) -> Floats:
    """Linear light (N, 3) from the points hit; `pixel_m` (N,) is the width of a pixel there."""
    colour = albedo(scene, hits, pixel_m)
    light = np.repeat((scene.ambient * _openness(scene, hits))[:, None], 3, 1)
    for lamp in scene.lights:
        towards = lamp.place - hits.point
        distance = np.sqrt(np.einsum("nk,nk->n", towards, towards))
        facing = np.einsum("nk,nk->n", hits.normal, towards) / np.maximum(distance, 1e-3)
        rows = np.flatnonzero(facing > 0)
        rows = rows[lit(scene, lamp.place, hits.point[rows])]
        fall = facing[rows] / (1 + (distance[rows] / lamp.reach_m) ** 2)
        light[rows] += fall[:, None] * lamp.colour
    glow = scene.glow[hits.solid][:, None]
    return np.asarray(np.where(glow > 0, scene.colours[hits.solid, 0] * glow, colour * light), np.float32)


def _openness(scene: Scene, hits: Hits) -> Floats:
    """How much of the room a point sees, 1 in the open: less near other sides of the room, and facing down."""
    gap = np.concatenate([hits.point, scene.size - hits.point], 1)  # (N, 6) to each side
    own = np.concatenate([hits.normal, -hits.normal], 1) > 0.9  # the side that the point lies on does not shade it
    shade = np.where(own, 0, np.exp(-np.maximum(gap, 0) / CORNER_M))
    return np.asarray(np.prod(1 - CORNER_SHADE * shade, 1) * (0.85 + 0.15 * hits.normal[:, 2]), np.float32)


def develop(light: Floats) -> Floats:
    """Linear light as a photograph's values between 0 and 1: highlights compressed, then the display's curve."""
    return np.asarray((1.35 * EXPOSURE * light / (0.55 + EXPOSURE * light)).clip(0, 1) ** (1 / 1.7), np.float32)
