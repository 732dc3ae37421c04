"""Procedural textures: how much of a solid's second colour each of its points shows.

Patterns lie in the plane that a surface faces least obliquely; a pattern fades into its mean where a pixel covers
more of it than it resolves. Letters: N points.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from broker_server.simulation.rooms.raycast import Hits
from broker_server.simulation.rooms.scene import Scene
from broker_server.simulation.rooms.style import PATTERNS

Floats = NDArray[np.float32]


def albedo(scene: Scene, hits: Hits, pixel_m: Floats) -> Floats:
    """Return the colour of each point hit, (N, 3); `pixel_m` (N,) is the width of a pixel there."""
    scale_m = scene.scale_m[hits.solid]
    u, v = _plane(hits)
    u, v = u / scale_m, v / scale_m
    share = np.zeros(len(u), np.float32)
    pattern = scene.pattern[hits.solid]
    for number, name in enumerate(PATTERNS):
        rows = np.flatnonzero(pattern == number)
        if rows.size:
            share[rows] = _SHARES[name](u[rows], v[rows], hits.solid[rows].astype(np.uint32))
    sharp = np.clip(1.5 - 2 * pixel_m / scale_m, 0, 1)
    share = np.float32(0.4) + (share - np.float32(0.4)) * sharp
    pair = scene.colours[hits.solid]  # (N, 2, 3)
    colour = pair[:, 0] + share[:, None] * (pair[:, 1] - pair[:, 0])
    grain = 0.94 + 0.12 * _noise(u * 0.7, v * 0.7, hits.solid.astype(np.uint32) + np.uint32(77))
    return np.asarray(colour * grain[:, None], np.float32)


def _plane(hits: Hits) -> tuple[Floats, Floats]:
    """Each point's two coordinates in the plane that its surface faces least obliquely; the second is up on walls."""
    facing = np.abs(hits.facing)
    x, y, z = hits.local.T
    flat = facing[:, 2] >= np.maximum(facing[:, 0], facing[:, 1])
    u = np.where(flat | (facing[:, 1] >= facing[:, 0]), x, y)
    return u, np.where(flat, y, z)


def _plain(u: Floats, v: Floats, seed: NDArray[np.uint32]) -> Floats:
    return 0.5 * _noise(u, v, seed)


def _stripes(u: Floats, _v: Floats, _seed: NDArray[np.uint32]) -> Floats:
    return np.asarray(u % 1 < 0.4, np.float32)


def _tiles(u: Floats, v: Floats, seed: NDArray[np.uint32]) -> Floats:
    joint = (u % 1 < 0.06) | (v % 1 < 0.06)
    tile = _hash(np.floor(u), np.floor(v), seed)
    return np.where(joint, 1.0, 0.35 * tile).astype(np.float32)


def _planks(u: Floats, v: Floats, seed: NDArray[np.uint32]) -> Floats:
    plank = np.floor(v * 2)
    tone = _hash(plank, np.floor(u * 0.25 + 0.37 * plank), seed)
    grain = _noise(u * 1.5, v * 14, seed)
    return np.where(v * 2 % 1 < 0.07, 1.0, 0.5 * tone + 0.35 * grain).astype(np.float32)


def _carpet(u: Floats, v: Floats, seed: NDArray[np.uint32]) -> Floats:
    return 0.5 * _noise(u * 3, v * 3, seed) + 0.5 * _noise(u * 9, v * 9, seed)


def _bricks(u: Floats, v: Floats, seed: NDArray[np.uint32]) -> Floats:
    row = np.floor(v * 2)
    shifted = u + 0.5 * (row % 2)
    joint = (shifted % 1 < 0.07) | (v * 2 % 1 < 0.12)
    return np.where(joint, 1.0, 0.4 * _hash(np.floor(shifted), row, seed)).astype(np.float32)


_Share = Callable[[Floats, Floats, NDArray[np.uint32]], Floats]
_SHARES: dict[str, _Share] = {
    "plain": _plain,
    "stripes": _stripes,
    "tiles": _tiles,
    "planks": _planks,
    "carpet": _carpet,
    "bricks": _bricks,
}


def _hash(i: Floats, j: Floats, seed: NDArray[np.uint32]) -> Floats:
    """Return a number between 0 and 1 for each lattice point, the same every time."""
    a, b = i.astype(np.int32).astype(np.uint32), j.astype(np.int32).astype(np.uint32)
    mixed = a * np.uint32(0x9E3779B1) ^ b * np.uint32(0x85EBCA77) ^ seed * np.uint32(0xC2B2AE3D)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> np.uint32(12)
    return np.asarray((mixed >> np.uint32(8)) / np.float32(2**24), np.float32)


def _noise(u: Floats, v: Floats, seed: NDArray[np.uint32]) -> Floats:
    """Smooth noise between 0 and 1 with a wavelength of about 1."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    low = _hash(i, j, seed) * (1 - a) + _hash(i + 1, j, seed) * a
    high = _hash(i, j + 1, seed) * (1 - a) + _hash(i + 1, j + 1, seed) * a
    return np.asarray(low * (1 - b) + high * b, np.float32)
