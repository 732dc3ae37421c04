"""A building's style: the distribution that its rooms are drawn from.

Buildings differ in everything that a client's data differs in: colours, textures, sizes, light, furniture and how
it was photographed. Two buildings of one seed share nothing but the kinds of things there are.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

FURNITURE = ("table", "chair", "couch", "bed", "cabinet", "shelf", "lamp", "plant", "ornament", "column")
PATTERNS = ("plain", "stripes", "tiles", "planks", "carpet", "bricks")
_WALLS = ("plain", "stripes", "carpet", "bricks")
_FLOORS = ("tiles", "planks", "carpet")


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a building's rooms have in common."""

    wall: Colour
    floor: Colour
    ceiling: Colour
    accents: tuple[Colour, ...]
    """Colours of furniture, rugs and pictures."""
    wall_pattern: str
    floor_pattern: str
    texture_scale_m: float
    """The size of a pattern's unit."""
    contrast: float
    """How much a pattern's two colours differ, 0 to 1."""
    height_m: float
    side_m: float
    """Typical side of a room."""
    furniture: tuple[float, ...]
    """Probability of each kind in FURNITURE."""
    pieces: float
    """Pieces of furniture a room, on average."""
    windows: float
    """Windows a room, on average."""
    pictures: float
    lamp: Colour
    daylight: Colour
    ambient: float
    camera_height_m: float
    pitch_deg: float
    field_of_view_deg: float
    noise: float
    """Standard deviation of the sensor's noise; 1 is white."""


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def draw_style(seed: int, building: int) -> Style:
    """Return the style of a building, by the seed and its number."""
    rng = np.random.default_rng((seed, building))
    # Hues go round the circle from building to building, so that few buildings are as different as many.
    hue = (building * 0.381966 + rng.uniform(-0.06, 0.06)) % 1.0
    warmth = rng.uniform(0, 1)
    wood = 0.06 + rng.uniform(-0.02, 0.03)
    floor_pattern = _FLOORS[building % 3]
    floor_hue, floor_saturation = (wood, rng.uniform(0.35, 0.6)) if floor_pattern == "planks" else (hue + 0.5, 0.15)
    mix = 0.7 * rng.dirichlet(np.full(len(FURNITURE), 1.2)) + 0.3 / len(FURNITURE)
    mix[FURNITURE.index("column")] *= 0.3  # it stands before everything else
    return Style(
        wall=_hsv(hue, rng.uniform(0.08, 0.45), rng.uniform(0.6, 0.95)),
        floor=_hsv(floor_hue, floor_saturation, rng.uniform(0.35, 0.8)),
        ceiling=_hsv(hue, 0.04, rng.uniform(0.85, 0.98)),
        accents=(
            *(
                _hsv(hue + 0.45 + rng.uniform(-0.2, 0.2), rng.uniform(0.3, 0.9), rng.uniform(0.15, 0.8))
                for _ in range(4)
            ),
            _hsv(wood, 0.55, rng.uniform(0.3, 0.7)),
            _hsv(0, 0, rng.uniform(0.1, 0.9)),
        ),
        wall_pattern=_WALLS[int(rng.integers(len(_WALLS)))],
        floor_pattern=floor_pattern,
        texture_scale_m=float(rng.uniform(0.12, 0.5)),
        contrast=float(rng.uniform(0.15, 0.5)),
        height_m=float(rng.uniform(2.3, 3.6)),
        side_m=float(rng.uniform(3.4, 6.5)),
        furniture=tuple(float(share) for share in mix / mix.sum()),
        pieces=float(rng.uniform(5, 10)),
        windows=float(rng.uniform(0.6, 2.2)),
        pictures=float(rng.uniform(0.5, 3.5)),
        lamp=_hsv(0.09, 0.5 * warmth, 1.0),
        daylight=_hsv(0.58, 0.3 * (1 - warmth), 1.0),
        ambient=float(rng.uniform(0.15, 0.4)),
        camera_height_m=float(rng.uniform(1.1, 1.75)),
        pitch_deg=float(rng.uniform(-18, 0)),
        field_of_view_deg=float(rng.uniform(55, 80)),
        noise=float(rng.uniform(0.002, 0.012)),
    )
