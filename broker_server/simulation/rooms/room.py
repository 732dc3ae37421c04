"""One room of a building: its sides, what hangs on them, what stands in it, and its lights."""

import math

import numpy as np

from broker_server.simulation.rooms.furniture import AGAINST_WALL, FOOTPRINTS, Spot, furnish, material, shaded
from broker_server.simulation.rooms.scene import FloorPlan, Light, Material, Scene, build
from broker_server.simulation.rooms.style import FURNITURE, Style

Generator = np.random.Generator
Area = tuple[float, float, float, float]
"""A rectangle of the floor: least x, least y, greatest x, greatest y."""

TRIES = 12
GAP_M = 0.06
LEAF_M = 0.03


def draw_room(style: Style, rng: Generator) -> Scene:
    """Return a room of the building, drawn from its style."""
    size = (
        style.side_m * rng.uniform(0.8, 1.3),
        style.side_m * rng.uniform(0.8, 1.3),
        max(2.2, style.height_m + rng.uniform(-0.15, 0.15)),
    )
    plan = FloorPlan(size=size)
    windows = _hang(plan, style, rng)
    _stand(plan, style, rng)
    return build(plan, _sides(style, rng), _lights(plan, style, rng, windows), style.ambient)


def _sides(style: Style, rng: Generator) -> list[Material]:
    tone = rng.uniform(0.92, 1.05)
    wall = Material(
        what="wall",
        colour=shaded(style.wall, tone),
        second=shaded(style.wall, tone * (1 - style.contrast)),
        pattern=style.wall_pattern,
        scale_m=style.texture_scale_m,
    )
    accent = Material(what="wall", colour=shaded(style.wall, 0.75), second=shaded(style.wall, 0.6), scale_m=0.6)
    walls = [wall] * 4
    if rng.random() < 0.3:
        walls[int(rng.integers(4))] = accent
    floor = Material(
        what="floor",
        colour=style.floor,
        second=shaded(style.floor, 1 - 1.2 * style.contrast),
        pattern=style.floor_pattern,
        scale_m=style.texture_scale_m * 1.6,
    )
    ceiling = Material(what="ceiling", colour=style.ceiling, second=shaded(style.ceiling, 0.93), scale_m=1.0)
    return [*walls, floor, ceiling]


def _on_wall(plan: FloorPlan, side: int, along: float, height: float, out: float = 0.0) -> tuple[float, float, float]:
    """Return a point on one of the four walls, `along` it, `out` into the room."""
    width, depth, _ = plan.size
    return {
        0: (out, along, height),
        1: (width - out, along, height),
        2: (along, out, height),
        3: (along, depth - out, height),
    }[side]


def _flat(side: int, half_width: float, half_height: float, half_thick: float) -> tuple[float, float, float]:
    across = (half_thick, half_width) if side < 2 else (half_width, half_thick)
    return (*across, half_height)


def _hang(plan: FloorPlan, style: Style, rng: Generator) -> list[tuple[float, float, float]]:
    """Put windows, doors and pictures on the walls; where the windows are."""
    taken: dict[int, list[tuple[float, float]]] = {side: [] for side in range(4)}

    def place(half: float) -> tuple[int, float] | None:
        for _ in range(TRIES):
            side = int(rng.integers(4))
            length = plan.size[1] if side < 2 else plan.size[0]
            along = rng.uniform(half + 0.15, length - half - 0.15)
            if all(abs(along - other) > half + other_half + 0.1 for other, other_half in taken[side]):
                taken[side].append((along, half))
                return side, along
        return None

    windows = []
    for _ in range(int(rng.poisson(style.windows))):
        half, tall = rng.uniform(0.4, 0.8), rng.uniform(0.45, min(0.8, plan.size[2] / 2 - 0.65))
        if (spot := place(half)) is not None:
            windows.append(_window(plan, style, rng, spot, (half, tall)))
    for _ in range(int(rng.integers(1, 3))):
        if (spot := place(0.45)) is not None:
            _door(plan, style, rng, *spot)
    for _ in range(int(rng.poisson(style.pictures))):
        half, tall = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.4)
        if (spot := place(half)) is not None:
            side, along = spot
            height = rng.uniform(1.4, 1.7)
            frame = material(style, rng, "picture")
            pattern = str(rng.choice(["tiles", "stripes", "carpet", "bricks"]))
            canvas = material(style, rng, "picture", pattern, rng.uniform(0.1, 0.4))
            plan.box(frame, _on_wall(plan, side, along, height, 0.015), _flat(side, half, tall, 0.015))
            inside = _flat(side, half - 0.04, tall - 0.04, 0.02)
            plan.box(canvas, _on_wall(plan, side, along, height, 0.015), inside)
    return windows


def _window(
    plan: FloorPlan, style: Style, rng: Generator, spot: tuple[int, float], half_sides: tuple[float, float]
) -> tuple[float, float, float]:
    side, along = spot
    half, tall = half_sides
    height = rng.uniform(0.9 + tall, max(0.95 + tall, plan.size[2] - tall - 0.2))
    frame = Material(what="window", colour=(0.9, 0.9, 0.88), second=(0.75, 0.75, 0.75))
    sky = shaded(style.daylight, rng.uniform(0.8, 1.0))
    glass = Material(what="window", colour=sky, second=sky, glow=rng.uniform(1.2, 2.6), open=rng.random() < 0.6)
    plan.box(frame, _on_wall(plan, side, along, height, 0.02), _flat(side, half, tall, 0.02))
    plan.box(glass, _on_wall(plan, side, along, height, 0.02), _flat(side, half - 0.06, tall - 0.06, 0.025))
    plan.box(frame, _on_wall(plan, side, along, height, 0.03), _flat(side, 0.025, tall, 0.03))
    plan.box(frame, _on_wall(plan, side, along, height, 0.03), _flat(side, half, 0.025, 0.03))
    return _on_wall(plan, side, along, height, 0.35)


def _door(plan: FloorPlan, style: Style, rng: Generator, side: int, along: float) -> None:
    colour = style.accents[4] if rng.random() < 0.5 else (0.85, 0.84, 0.8)
    leaf = Material(what="door", colour=colour, second=shaded(colour, 0.7), pattern="planks", scale_m=0.5)
    frame = Material(what="door", colour=shaded(colour, 0.8), second=shaded(colour, 0.7))
    plan.box(frame, _on_wall(plan, side, along, 1.03, 0.02), _flat(side, 0.48, 1.03, 0.02))
    plan.box(leaf, _on_wall(plan, side, along, 1.0, 0.03), _flat(side, 0.41, 1.0, 0.03))
    for height in (0.55, 1.45):
        plan.box(frame, _on_wall(plan, side, along, height, 0.035), _flat(side, 0.26, 0.34, 0.035))
    knob = Material(what="door", colour=(0.7, 0.6, 0.3), second=(0.4, 0.35, 0.2))
    plan.sphere(knob, _on_wall(plan, side, along + 0.33, 1.0, 0.1), 0.045)


def _stand(plan: FloorPlan, style: Style, rng: Generator) -> None:
    """Put furniture on the floor, each piece clear of the others."""
    width, depth, _ = plan.size
    if rng.random() < 0.7:
        half = (width * rng.uniform(0.15, 0.3), depth * rng.uniform(0.15, 0.3), 0.006)
        rug = material(style, rng, "rug", str(rng.choice(["stripes", "tiles", "carpet"])), rng.uniform(0.15, 0.4))
        plan.box(rug, (width * rng.uniform(0.4, 0.6), depth * rng.uniform(0.4, 0.6), half[2]), half)
    taken: list[Area] = []
    for kind in rng.choice(FURNITURE, size=max(3, int(rng.poisson(style.pieces))), p=style.furniture):
        for _ in range(TRIES):
            x, y, angle, area = _try(plan, str(kind), rng)
            if all(not _overlap(area, other) for other in taken):
                taken.append(area)
                furnish(str(kind), Spot(plan=plan, x=x, y=y, angle=angle), style, rng)
                break


def _try(plan: FloorPlan, kind: str, rng: Generator) -> tuple[float, float, float, Area]:
    """Return a place for a piece: its middle, its angle, and the rectangle that it covers."""
    width, depth, _ = plan.size
    half_width, half_depth = FOOTPRINTS[kind]
    if kind in AGAINST_WALL:
        # Its back, +y when it is not turned, goes to the wall.
        turn = int(rng.integers(4))
        angle = turn * math.pi / 2
        half_x, half_y = (half_width, half_depth) if turn % 2 == 0 else (half_depth, half_width)
        x, y = rng.uniform(half_x, width - half_x), rng.uniform(half_y, depth - half_y)
        x = {1: half_x + LEAF_M, 3: width - half_x - LEAF_M}.get(turn, x)
        y = {0: depth - half_y - LEAF_M, 2: half_y + LEAF_M}.get(turn, y)
    else:
        angle = rng.uniform(0, 2 * math.pi) if kind != "table" else rng.uniform(-0.3, 0.3)
        half_x = half_width * abs(math.cos(angle)) + half_depth * abs(math.sin(angle))
        half_y = half_width * abs(math.sin(angle)) + half_depth * abs(math.cos(angle))
        x, y = rng.uniform(half_x, width - half_x), rng.uniform(half_y, depth - half_y)
    return x, y, angle, (x - half_x, y - half_y, x + half_x, y + half_y)


def _overlap(one: Area, other: Area) -> bool:
    return (
        one[0] < other[2] + GAP_M
        and other[0] < one[2] + GAP_M
        and one[1] < other[3] + GAP_M
        and other[1] < one[3] + GAP_M
    )


def _lights(
    plan: FloorPlan, style: Style, rng: Generator, windows: list[tuple[float, float, float]]
) -> tuple[Light, ...]:
    """Return a lamp under the ceiling, which is also seen, and daylight from one window."""
    width, depth, height = plan.size
    x, y = width * rng.uniform(0.35, 0.65), depth * rng.uniform(0.35, 0.65)
    shade = Material(what="lamp", colour=style.lamp, second=style.lamp, glow=rng.uniform(1.5, 3.0), solid=False)
    drop = rng.uniform(0.12, min(0.6, height - 2.0))
    if rng.random() < 0.5:
        plan.sphere(shade, (x, y, height - drop), 0.12)
        cord = Material(what="lamp", colour=(0.2, 0.2, 0.2), second=(0.2, 0.2, 0.2), solid=False)
        plan.cylinder(cord, (x, y, height - drop / 2), 0.012, drop / 2)
    else:
        plan.cylinder(shade, (x, y, height - 0.05), 0.22, 0.05)
        drop = 0.2
    colour = np.array(style.lamp, np.float32)
    strength = rng.uniform(0.7, 1.2) if windows else rng.uniform(1.1, 1.6)
    place = np.array((x, y, height - drop), np.float32)
    lights = [Light(place=place, colour=colour * np.float32(strength), reach_m=2.5)]
    if windows:
        daylight = np.array(style.daylight, np.float32) * np.float32(rng.uniform(0.8, 1.4))
        window = windows[int(rng.integers(len(windows)))]
        lights.append(Light(place=np.array(window, np.float32), colour=daylight, reach_m=3.0))
    return tuple(lights)
