"""A scene: an empty room, the solids in it, what they are made of, and the lights.

The world's frame has z up; the room spans 0 to its size along every axis. Letters: M boxes, K cylinders, S spheres.
Solids are numbered boxes first, then cylinders, then spheres, then the six sides of the room: its sides x = 0,
x = size, y = 0, y = size, floor, ceiling.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker_server.simulation.rooms.style import PATTERNS, Colour

Floats = NDArray[np.float32]
Point = tuple[float, float, float]

CLASSES = (
    "not labelled",
    "wall",
    "floor",
    "ceiling",
    "window",
    "door",
    "picture",
    "rug",
    "table",
    "chair",
    "couch",
    "bed",
    "cabinet",
    "shelf",
    "lamp",
    "plant",
    "ornament",
    "column",
)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a solid is made of, and what it is."""

    what: str
    """Its name in CLASSES."""
    colour: Colour
    second: Colour
    """The other colour of its pattern."""
    pattern: str = "plain"
    scale_m: float = 0.3
    glow: float = 0.0
    """Light of its own, as a factor on its colour."""
    open: bool = False
    """An opening: what is behind it has no depth."""
    solid: bool = True
    """Throws a shadow."""


@dataclass(kw_only=True)
class FloorPlan:
    """A scene being put together."""

    size: Point
    boxes: list[tuple[Point, Point, float]] = field(default_factory=list)
    """Centre, half the sides, and the angle about the vertical axis, in radians."""
    cylinders: list[tuple[Point, float, float]] = field(default_factory=list)
    """Centre of an upright cylinder, radius, half the height."""
    spheres: list[tuple[Point, float]] = field(default_factory=list)
    box_materials: list[Material] = field(default_factory=list)
    cylinder_materials: list[Material] = field(default_factory=list)
    sphere_materials: list[Material] = field(default_factory=list)

    def box(self, material: Material, centre: Point, half: Point, angle: float = 0.0) -> None:
        """Add a box."""
        self.boxes.append((centre, half, angle))
        self.box_materials.append(material)

    def cylinder(self, material: Material, centre: Point, radius_m: float, half_m: float) -> None:
        """Add an upright cylinder."""
        self.cylinders.append((centre, radius_m, half_m))
        self.cylinder_materials.append(material)

    def sphere(self, material: Material, centre: Point, radius_m: float) -> None:
        """Add a sphere."""
        self.spheres.append((centre, radius_m))
        self.sphere_materials.append(material)


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """A small light; its strength falls with the square of the distance, softened near by."""

    place: Floats  # (3,)
    colour: Floats  # (3,)
    reach_m: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A scene as arrays, ready to be cast."""

    size: Floats  # (3,)
    box_centre: Floats  # (M, 3)
    box_half: Floats  # (M, 3)
    box_turn: Floats  # (M, 2) cosine and sine
    cylinder_centre: Floats  # (K, 3)
    cylinder_radius: Floats  # (K,)
    cylinder_half: Floats  # (K,)
    sphere_centre: Floats  # (S, 3)
    sphere_radius: Floats  # (S,)
    lights: tuple[Light, ...]
    ambient: float
    # By solid, M + K + S + 6 rows:
    what: NDArray[np.uint8]
    colours: Floats  # (…, 2, 3)
    pattern: NDArray[np.int8]
    scale_m: Floats
    glow: Floats
    open: NDArray[np.bool_]
    casts: NDArray[np.bool_]


def build(plan: FloorPlan, sides: list[Material], lights: tuple[Light, ...], ambient: float) -> Scene:
    """Return the scene of a plan, with the materials of the room's six sides."""
    materials = [*plan.box_materials, *plan.cylinder_materials, *plan.sphere_materials, *sides]
    angles = np.array([box[2] for box in plan.boxes], np.float32)
    return Scene(
        size=np.array(plan.size, np.float32),
        box_centre=_rows([box[0] for box in plan.boxes]),
        box_half=_rows([box[1] for box in plan.boxes]),
        box_turn=np.stack([np.cos(angles), np.sin(angles)], 1),
        cylinder_centre=_rows([cylinder[0] for cylinder in plan.cylinders]),
        cylinder_radius=np.array([cylinder[1] for cylinder in plan.cylinders], np.float32),
        cylinder_half=np.array([cylinder[2] for cylinder in plan.cylinders], np.float32),
        sphere_centre=_rows([sphere[0] for sphere in plan.spheres]),
        sphere_radius=np.array([sphere[1] for sphere in plan.spheres], np.float32),
        lights=lights,
        ambient=ambient,
        what=np.array([CLASSES.index(material.what) for material in materials], np.uint8),
        colours=np.array([(material.colour, material.second) for material in materials], np.float32),
        pattern=np.array([PATTERNS.index(material.pattern) for material in materials], np.int8),
        scale_m=np.array([material.scale_m for material in materials], np.float32),
        glow=np.array([material.glow for material in materials], np.float32),
        open=np.array([material.open for material in materials], np.bool_),
        casts=np.array([material.solid for material in materials], np.bool_),
    )


def _rows(points: list[Point]) -> Floats:
    return np.array(points, np.float32).reshape(-1, 3)
