"""Rays against a scene: what each ray from one point hits first, exactly.

Directions need not have length 1: with a camera's directions scaled to depth 1, `distance` is the z-buffer's depth.
Letters: N rays, M boxes, K cylinders, S spheres.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_server.simulation.rooms.scene import Scene

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

NEVER = np.float32(np.inf)
TINY = np.float32(1e-9)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """What N rays hit."""

    solid: Indices  # (N,) number of the solid, in the scene's order
    distance: Floats  # (N,) in lengths of the ray's direction
    point: Floats  # (N, 3)
    normal: Floats  # (N, 3) unit, on the side that the ray comes from
    local: Floats  # (N, 3) the point in the solid's own frame, for its texture
    facing: Floats  # (N, 3) the normal in that frame
    curvature: Floats  # (N, 2) principal curvatures, 1/m


def _distances(scene: Scene, origin: Floats, directions: Floats) -> tuple[Floats, Floats, Floats]:
    """To the boxes (M, N), cylinders (K, N) and spheres (S, N); infinite where missed."""
    return (
        _to_boxes(scene, origin, directions),
        _to_cylinders(scene, origin, directions),
        _to_spheres(scene, origin, directions),
    )


def _to_boxes(scene: Scene, origin: Floats, directions: Floats) -> Floats:
    start = origin - scene.box_centre  # (M, 3)
    cosine, sine = scene.box_turn[:, 0], scene.box_turn[:, 1]
    x, y, z = np.ascontiguousarray(directions.T)[:, None, :]  # (1, N) each
    c, s = cosine[:, None], sine[:, None]
    along = (c * x + s * y, c * y - s * x, z)  # (M, N), in the box's frame
    begin = (cosine * start[:, 0] + sine * start[:, 1], cosine * start[:, 1] - sine * start[:, 0], start[:, 2])
    near = np.full((len(start), len(directions)), -NEVER, np.float32)
    far = np.full_like(near, NEVER)
    for axis in range(3):
        inverse = 1 / _off_axis(along[axis])
        middle = -begin[axis][:, None] * inverse
        reach = scene.box_half[:, axis, None] * np.abs(inverse)
        np.maximum(near, middle - reach, out=near)
        np.minimum(far, middle + reach, out=far)
    return np.where((near <= far) & (near > 0), near, NEVER)


def _to_cylinders(scene: Scene, origin: Floats, directions: Floats) -> Floats:
    start = origin - scene.cylinder_centre  # (K, 3)
    x, y, z = np.ascontiguousarray(directions.T)[:, None, :]
    a = x * x + y * y  # (1, N)
    b = start[:, :1] * x + start[:, 1:2] * y  # (K, N)
    c = (start[:, 0] ** 2 + start[:, 1] ** 2 - scene.cylinder_radius**2)[:, None]
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    crossed = b * b > a * c
    inverse_z = 1 / z
    middle = -start[:, 2:] * inverse_z
    reach = scene.cylinder_half[:, None] * np.abs(inverse_z)
    near = np.maximum((-b - root) / a, middle - reach)
    far = np.minimum((-b + root) / a, middle + reach)
    return np.where(crossed & (near <= far) & (near > 0), near, NEVER)


def _to_spheres(scene: Scene, origin: Floats, directions: Floats) -> Floats:
    start = origin - scene.sphere_centre  # (S, 3)
    a = np.einsum("nk,nk->n", directions, directions)[None]  # (1, N)
    b = start @ directions.T  # (S, N)
    c = (np.einsum("sk,sk->s", start, start) - scene.sphere_radius**2)[:, None]
    square = b * b - a * c
    near = (-b - np.sqrt(np.maximum(square, 0))) / a
    return np.where((square > 0) & (near > 0), near, NEVER)


def _to_sides(scene: Scene, origin: Floats, directions: Floats) -> tuple[Floats, Indices]:
    """To the room's sides, from inside (N,), and which of the six."""
    inverse = 1 / directions  # (N, 3)
    ahead = np.where(directions > 0, scene.size - origin, -origin) * inverse
    axis = np.argmin(ahead, 1)
    rows = np.arange(len(directions))
    return ahead[rows, axis], 2 * axis + (directions[rows, axis] > 0)


def cast(scene: Scene, origin: Floats, directions: Floats) -> Hits:
    """Return the first hits of rays from `origin` (3,), a point inside the room, along `directions` (N, 3)."""
    directions = _off_axis(directions)
    distance, side = _to_sides(scene, origin, directions)
    count = len(scene.what) - 6
    solid = count + side
    if count:
        table = np.concatenate(_distances(scene, origin, directions))  # (M + K + S, N)
        nearest = np.argmin(table, 0)
        reached = table[nearest, np.arange(len(directions))]
        solid = np.where(reached < distance, nearest, solid)
        distance = np.minimum(reached, distance)
    point = origin + distance[:, None] * directions
    return _describe(scene, solid, distance, point, directions)


def lit(scene: Scene, light: Floats, points: Floats) -> NDArray[np.bool_]:
    """Whether nothing is between the light (3,) and each of the points (N, 3)."""
    directions = _off_axis(points - light)
    free = np.ones(len(points), np.bool_)
    begin = 0
    for distances in _distances(scene, light, directions):
        casts = scene.casts[begin : begin + len(distances)]
        free &= ~((distances < np.float32(0.999)) & casts[:, None]).any(0)
        begin += len(distances)
    return free


def _off_axis(directions: Floats) -> Floats:
    """Directions without exact zeros, which a division could not take."""
    return np.where(np.abs(directions) < TINY, TINY, directions).astype(np.float32)


def _describe(scene: Scene, solid: Indices, distance: Floats, point: Floats, directions: Floats) -> Hits:
    boxes, cylinders, spheres = len(scene.box_half), len(scene.cylinder_half), len(scene.sphere_radius)
    local = point.copy()
    facing = np.zeros_like(point)
    normal = np.zeros_like(point)
    curvature = np.zeros((len(point), 2), np.float32)

    rows = np.flatnonzero(solid < boxes)
    if rows.size:
        index = solid[rows]
        cosine, sine = scene.box_turn[index].T
        local[rows] = _turn(point[rows] - scene.box_centre[index], cosine, -sine)
        depth = np.abs(local[rows]) - scene.box_half[index]  # the side hit is the one that the point is nearest to
        axis = np.argmax(depth, 1)
        facing[rows, axis] = np.sign(local[rows, axis])
        normal[rows] = _turn(facing[rows], cosine, sine)

    rows = np.flatnonzero((solid >= boxes) & (solid < boxes + cylinders))
    if rows.size:
        index = solid[rows] - boxes
        local[rows] = point[rows] - scene.cylinder_centre[index]
        radius = scene.cylinder_radius[index]
        across = np.hypot(local[rows, 0], local[rows, 1]) - radius
        cap = np.abs(local[rows, 2]) - scene.cylinder_half[index] > across
        around = local[rows] / radius[:, None]
        around[:, 2] = 0
        upright = np.zeros_like(around)
        upright[:, 2] = np.sign(local[rows, 2])
        normal[rows] = facing[rows] = np.where(cap[:, None], upright, around)
        curvature[rows, 0] = np.where(cap, 0, 1 / radius)

    rows = np.flatnonzero((solid >= boxes + cylinders) & (solid < boxes + cylinders + spheres))
    if rows.size:
        index = solid[rows] - boxes - cylinders
        local[rows] = point[rows] - scene.sphere_centre[index]
        normal[rows] = facing[rows] = local[rows] / scene.sphere_radius[index][:, None]
        curvature[rows] = (1 / scene.sphere_radius[index])[:, None]

    rows = np.flatnonzero(solid >= boxes + cylinders + spheres)
    if rows.size:
        side = solid[rows] - boxes - cylinders - spheres
        facing[rows, side // 2] = 1 - 2 * (side % 2)  # towards the inside
        normal[rows] = facing[rows]
    away = np.einsum("nk,nk->n", normal, directions) > 0
    normal[away] *= -1
    return Hits(
        solid=solid,
        distance=distance,
        point=point,
        normal=normal,
        local=local,
        facing=facing,
        curvature=curvature,
    )


def _turn(vectors: Floats, cosine: Floats, sine: Floats) -> Floats:
    x, y, z = vectors.T
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], 1)
