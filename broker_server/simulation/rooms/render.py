"""One view of a room with all its domains, in Taskonomy's encodings.

Every pixel is cast through its centre, which gives the labels; pixels on an edge are cast four times more, for the
image and to see where a pixel belongs to no one class. Letters: S pixels a side.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.simulation.rooms import truth
from broker_server.simulation.rooms.camera import Camera, draw_camera, pixel_centres
from broker_server.simulation.rooms.raycast import Hits, cast
from broker_server.simulation.rooms.room import draw_room
from broker_server.simulation.rooms.scene import Scene
from broker_server.simulation.rooms.shading import develop, shade
from broker_server.simulation.rooms.style import draw_style
from edge_runtime.datasets import taskonomy

Array = NDArray[Any]
Floats = NDArray[np.float32]

VIEWS_PER_POINT = 2
AGREEING = 3
"""Of four rays in an edge pixel, how many must hit the centre's class for the pixel to have a label."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which view to draw: everything about it follows from these numbers."""

    seed: int
    building: int
    image: int
    size: int

    @property
    def point(self) -> int:
        """The point that the view is of: a room of its own."""
        return self.image // VIEWS_PER_POINT

    @property
    def view(self) -> int:
        """Which of the point's views."""
        return self.image % VIEWS_PER_POINT


def draw_view(order: Order) -> dict[str, Array]:
    """Return the pixels of a view by domain, as Taskonomy's files hold them."""
    style = draw_style(order.seed, order.building)
    scene = draw_room(style, np.random.default_rng((order.seed, order.building, order.point)))
    rng = np.random.default_rng((order.seed, order.building, order.point, order.view))
    camera = draw_camera(scene, style, rng)
    noise = rng.normal(0, style.noise, (order.size, order.size, 3)).astype(np.float32)
    return render(scene, camera, noise)


def render(scene: Scene, camera: Camera, noise: Floats) -> dict[str, Array]:
    """Return the domains of what a camera sees, with a sensor's noise (S, S, 3)."""
    size = len(noise)
    columns, rows = pixel_centres(size)
    rays = camera.rays(columns, rows)
    hits = cast(scene, camera.place, rays)
    light = shade(scene, hits, _pixel_m(camera, hits, size))
    classes = scene.what[hits.solid]

    edge = np.flatnonzero(_edges(hits, size))
    finer = np.zeros((len(edge), 3), np.float32)
    agreeing = np.zeros(len(edge), np.int64)
    for right in (-0.5, 0.5):
        for down in (-0.5, 0.5):
            step = np.float32(1 / size)
            sub = cast(scene, camera.place, camera.rays(columns[edge] + right * step, rows[edge] + down * step))
            finer += develop(shade(scene, sub, _pixel_m(camera, sub, 2 * size)))
            agreeing += scene.what[sub.solid] == classes[edge]
    light = develop(light)
    light[edge] = finer / 4
    classes[edge[agreeing < AGREEING]] = 0

    square = (size, size)
    image = np.rint((light.reshape(size, size, 3) + noise) * 255).clip(0, 255).astype(np.uint8)
    luminance = truth.grey(image)
    depth_m = hits.distance.reshape(square)
    normals = (hits.normal @ camera.axes.T).reshape(size, size, 3)  # in the camera's frame
    reshading = truth.reshading(normals, (rays @ camera.axes.T).reshape(size, size, 3))
    open_ = scene.open[hits.solid].reshape(square)
    grey = np.rint(reshading * 255).astype(np.uint8)
    return {
        "rgb": image,
        "segment_semantic": classes.reshape(square),
        "depth_zbuffer": taskonomy.encode_depth(np.where(open_, np.float32(np.nan), depth_m)),
        "normal": taskonomy.encode_normals(np.where(open_[..., None], np.float32(0), normals)),
        "keypoints2d": taskonomy.encode_response(truth.keypoints(luminance)),
        "edge_texture": taskonomy.encode_response(truth.edge_texture(luminance)),
        "edge_occlusion": taskonomy.encode_response(truth.edge_occlusion(depth_m)),
        "reshading": np.repeat(grey[..., None], 3, 2),
        "principal_curvature": taskonomy.encode_curvature(hits.curvature.reshape(size, size, 2)),
    }


def _pixel_m(camera: Camera, hits: Hits, size: int) -> Floats:
    return hits.distance * np.float32(2 * camera.slope / size)


def _edges(hits: Hits, size: int) -> NDArray[np.bool_]:
    """Pixels (S * S,) that differ from a neighbour in what they hit, or in how it is turned."""
    solid = hits.solid.reshape(size, size)
    normal = hits.normal.reshape(size, size, 3)
    across = (solid[:, 1:] != solid[:, :-1]) | (np.einsum("hwk,hwk->hw", normal[:, 1:], normal[:, :-1]) < 0.8)
    along = (solid[1:] != solid[:-1]) | (np.einsum("hwk,hwk->hw", normal[1:], normal[:-1]) < 0.8)
    edges = np.zeros((size, size), np.bool_)
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= along
    edges[:-1] |= along
    return edges.ravel()
