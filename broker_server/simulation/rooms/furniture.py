"""Pieces of furniture, each made of a few boxes, cylinders and spheres.

A piece stands on the floor at (x, y), turned by an angle about the vertical axis, its back towards its own +y.
`FOOTPRINTS` gives half its width and half its depth in metres; each builder keeps within it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from broker_server.simulation.rooms.scene import FloorPlan, Material
from broker_server.simulation.rooms.style import Colour, Style

Generator = np.random.Generator

# Half the width and half the depth, in metres.
FOOTPRINTS: dict[str, tuple[float, float]] = {
    "table": (0.75, 0.5),
    "chair": (0.27, 0.27),
    "couch": (1.0, 0.45),
    "bed": (0.8, 1.05),
    "cabinet": (0.55, 0.28),
    "shelf": (0.5, 0.2),
    "lamp": (0.25, 0.25),
    "plant": (0.35, 0.35),
    "ornament": (0.3, 0.3),
    "column": (0.25, 0.25),
}
AGAINST_WALL = frozenset({"couch", "bed", "cabinet", "shelf"})


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where a piece stands, in the plan it is added to."""

    plan: FloorPlan
    x: float
    y: float
    angle: float

    def box(self, material: Material, right: float, back: float, low: float, half: tuple[float, float, float]) -> None:
        """Return a box by its offset from the spot, the height of its underside, and half its sides."""
        x, y = self._at(right, back)
        self.plan.box(material, (x, y, low + half[2]), half, self.angle)

    def cylinder(self, material: Material, right: float, back: float, low: float, half: tuple[float, float]) -> None:
        """Return an upright cylinder by its offset, the height of its underside, and its radius and half its height."""
        x, y = self._at(right, back)
        self.plan.cylinder(material, (x, y, low + half[1]), *half)

    def sphere(self, material: Material, right: float, back: float, middle: float, radius_m: float) -> None:
        """Return a sphere by its offset, the height of its centre, and radius."""
        x, y = self._at(right, back)
        self.plan.sphere(material, (x, y, middle), radius_m)

    def _at(self, right: float, back: float) -> tuple[float, float]:
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return self.x + cosine * right - sine * back, self.y + sine * right + cosine * back


def shaded(colour: Colour, factor: float) -> Colour:
    """Return a colour made darker or lighter."""
    red, green, blue = colour
    return min(red * factor, 1.0), min(green * factor, 1.0), min(blue * factor, 1.0)


def material(style: Style, rng: Generator, what: str, pattern: str = "plain", scale_m: float = 0.2) -> Material:
    """Return a material of one of the style's accents."""
    colour = style.accents[int(rng.integers(len(style.accents)))]
    return Material(
        what=what,
        colour=shaded(colour, rng.uniform(0.8, 1.15)),
        second=shaded(colour, 1 - style.contrast),
        pattern=pattern,
        scale_m=scale_m,
    )


def _table(spot: Spot, style: Style, rng: Generator) -> None:
    wood = material(style, rng, "table", "planks", 0.25)
    width, depth = rng.uniform(0.45, 0.75), rng.uniform(0.35, 0.5)
    top = rng.uniform(0.42, 0.76)
    spot.box(wood, 0, 0, top - 0.04, (width, depth, 0.02))
    if rng.random() < 0.3:
        spot.cylinder(wood, 0, 0, 0, (0.07, (top - 0.04) / 2))
        spot.cylinder(wood, 0, 0, 0, (0.28, 0.015))
    else:
        for side in (-1, 1):
            for end in (-1, 1):
                spot.box(wood, side * (width - 0.06), end * (depth - 0.06), 0, (0.03, 0.03, (top - 0.04) / 2))
    things = material(style, rng, "ornament")
    for _ in range(int(rng.integers(0, 3))):
        right, back, radius = rng.uniform(-0.6, 0.6) * width, rng.uniform(-0.6, 0.6) * depth, rng.uniform(0.06, 0.13)
        if rng.random() < 0.5:
            spot.sphere(things, right, back, top + radius, radius)
        else:
            spot.cylinder(things, right, back, top, (radius, rng.uniform(0.06, 0.18)))


def _chair(spot: Spot, style: Style, rng: Generator) -> None:
    wood = material(style, rng, "chair")
    spot.box(wood, 0, 0, 0.42, (0.23, 0.23, 0.025))
    spot.box(wood, 0, 0.215, 0.47, (0.23, 0.02, rng.uniform(0.2, 0.3)))
    for right in (-0.2, 0.2):
        for back in (-0.2, 0.2):
            spot.box(wood, right, back, 0, (0.02, 0.02, 0.21))


def _couch(spot: Spot, style: Style, rng: Generator) -> None:
    cloth = material(style, rng, "couch", str(rng.choice(["plain", "stripes", "carpet"])), 0.18)
    width = rng.uniform(0.55, 1.0)
    spot.box(cloth, 0, 0, 0.08, (width, 0.42, 0.17))
    spot.box(cloth, 0, 0.31, 0.42, (width, 0.12, rng.uniform(0.16, 0.25)))
    for side in (-1, 1):
        spot.box(cloth, side * (width - 0.09), 0, 0.42, (0.09, 0.42, 0.1))
    cushion = material(style, rng, "couch")
    for side in (-1, 1):
        if rng.random() < 0.6:
            spot.box(cushion, side * width * 0.45, 0.1, 0.42, (0.17, 0.08, 0.15))


def _bed(spot: Spot, style: Style, rng: Generator) -> None:
    frame = material(style, rng, "bed", "planks", 0.3)
    sheet = material(style, rng, "bed", str(rng.choice(["plain", "stripes", "tiles"])), 0.3)
    width = rng.uniform(0.5, 0.8)
    spot.box(frame, 0, 0, 0, (width, 1.0, 0.14))
    spot.box(sheet, 0, -0.02, 0.28, (width - 0.03, 0.97, 0.11))
    spot.box(frame, 0, 1.0, 0, (width, 0.04, rng.uniform(0.4, 0.6)))
    pillow = Material(what="bed", colour=(0.92, 0.92, 0.9), second=(0.8, 0.8, 0.8))
    for side in (-1, 1) if width > 0.6 else (0,):
        spot.box(pillow, side * width * 0.48, 0.7, 0.5, (0.26, 0.17, 0.05))


def _cabinet(spot: Spot, style: Style, rng: Generator) -> None:
    wood = material(style, rng, "cabinet", str(rng.choice(["planks", "plain"])), 0.3)
    height = rng.uniform(0.35, 1.0)
    spot.box(wood, 0, 0, 0, (0.52, 0.25, height))
    handle = Material(what="cabinet", colour=(0.15, 0.15, 0.15), second=(0.3, 0.3, 0.3))
    for side in (-1, 1):
        spot.box(shade_door(wood), side * 0.26, -0.252, 0.06, (0.24, 0.012, height - 0.06))
        spot.sphere(handle, side * 0.06, -0.275, height, 0.03)
    if height < 0.6 and rng.random() < 0.6:
        screen = Material(what="cabinet", colour=(0.05, 0.05, 0.07), second=(0.1, 0.1, 0.14))
        spot.box(screen, 0, 0.05, 2 * height + 0.04, (0.42, 0.025, 0.25))
        spot.box(screen, 0, 0.05, 2 * height, (0.12, 0.08, 0.02))


def shade_door(wood: Material) -> Material:
    """Return a door's leaf: the wood of its frame, a little lighter."""
    return Material(
        what=wood.what,
        colour=shaded(wood.colour, 1.15),
        second=shaded(wood.second, 1.15),
        pattern=wood.pattern,
        scale_m=wood.scale_m,
    )


def _shelf(spot: Spot, style: Style, rng: Generator) -> None:
    wood = material(style, rng, "shelf")
    boards = int(rng.integers(3, 6))
    height = rng.uniform(0.9, 2.0)
    spot.box(wood, 0, 0.17, 0, (0.46, 0.01, height / 2))
    for side in (-1, 1):
        spot.box(wood, side * 0.46, 0, 0, (0.02, 0.18, height / 2))
    gap = (height - 0.03) / boards
    for board in range(boards + 1):
        spot.box(wood, 0, 0, board * gap, (0.46, 0.18, 0.015))
        if board < boards and rng.random() < 0.85:
            width = rng.uniform(0.12, 0.4)
            books = material(style, rng, "shelf", "stripes", rng.uniform(0.04, 0.09))
            spot.box(
                books, rng.uniform(width - 0.43, 0.43 - width), 0.03, board * gap + 0.03, (width, 0.12, gap * 0.36)
            )


def _lamp(spot: Spot, style: Style, rng: Generator) -> None:
    metal = Material(what="lamp", colour=(0.25, 0.24, 0.22), second=(0.4, 0.38, 0.35))
    height = rng.uniform(1.2, 1.7)
    spot.cylinder(metal, 0, 0, 0, (0.15, 0.015))
    spot.cylinder(metal, 0, 0, 0.03, (0.02, height / 2))
    glass = Material(what="lamp", colour=style.lamp, second=style.lamp, glow=rng.uniform(0.8, 2.0), solid=False)
    if rng.random() < 0.5:
        spot.sphere(glass, 0, 0, height + 0.12, rng.uniform(0.12, 0.2))
    else:
        spot.cylinder(glass, 0, 0, height, (rng.uniform(0.14, 0.22), 0.14))


def _plant(spot: Spot, style: Style, rng: Generator) -> None:
    pot = material(style, rng, "plant")
    height = rng.uniform(0.12, 0.25)
    spot.cylinder(pot, 0, 0, 0, (rng.uniform(0.12, 0.2), height))
    green = (rng.uniform(0.1, 0.3), rng.uniform(0.35, 0.55), rng.uniform(0.08, 0.2))
    leaves = Material(what="plant", colour=green, second=shaded(green, 0.45), pattern="carpet", scale_m=0.3)
    for _ in range(int(rng.integers(2, 6))):
        radius = rng.uniform(0.1, 0.18)
        middle = 2 * height + rng.uniform(0.1, 0.6)
        spot.sphere(leaves, rng.uniform(-0.16, 0.16), rng.uniform(-0.16, 0.16), middle, radius)


def _ornament(spot: Spot, style: Style, rng: Generator) -> None:
    stuff = material(style, rng, "ornament", str(rng.choice(["plain", "stripes", "tiles"])), 0.15)
    shape = int(rng.integers(3))
    radius = rng.uniform(0.14, 0.28)
    if shape == 0:
        spot.sphere(stuff, 0, 0, radius, radius)
    elif shape == 1:
        spot.cylinder(stuff, 0, 0, 0, (radius, rng.uniform(0.15, 0.35)))
    else:
        spot.cylinder(stuff, 0, 0, 0, (0.1, 0.25))
        spot.sphere(stuff, 0, 0, 0.5 + radius * 0.7, radius)


def _column(spot: Spot, style: Style, _rng: Generator) -> None:
    stone = Material(what="column", colour=shaded(style.wall, 1.1), second=shaded(style.wall, 0.7), pattern="carpet")
    half = spot.plan.size[2] / 2
    spot.cylinder(stone, 0, 0, 0, (0.16, half))
    spot.box(stone, 0, 0, 0, (0.22, 0.22, 0.06))


_BUILDERS: dict[str, Callable[[Spot, Style, Generator], None]] = {
    "table": _table,
    "chair": _chair,
    "couch": _couch,
    "bed": _bed,
    "cabinet": _cabinet,
    "shelf": _shelf,
    "lamp": _lamp,
    "plant": _plant,
    "ornament": _ornament,
    "column": _column,
}


def furnish(kind: str, spot: Spot, style: Style, rng: Generator) -> None:
    """Put a piece of furniture of this kind on the spot."""
    _BUILDERS[kind](spot, style, rng)
