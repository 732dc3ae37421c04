"""Reading images at computed places: sums of looked up pixels, so that places have a gradient as well."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def grid_sample(
    x: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """Read an image (B, C, [D,] H, W) at places (B, …, 2 or 3) between −1 and 1: sums of looked up pixels."""
    lengths, aligned = x.shape[2:], bool(align_corners)
    places = [_pixel(grid[..., -1 - i], lengths[i], aligned) for i in range(len(lengths))]

    def inside(values: Sequence[Tensor]) -> list[Tensor]:
        return [_inside(v, n, padding_mode, aligned) for v, n in zip(values, lengths, strict=True)]

    if mode == "nearest":
        zero = (0 * grid).sum(-1).unsqueeze(1)  # the gradient of places
        return _looked_up(x, [torch.round(place) for place in inside(places)]) + zero
    cubic = mode == "bicubic"
    if not cubic:
        places = inside(places)
    floors = [torch.floor(place) for place in places]
    shares = [(_cubic if cubic else _linear)(p - f) for p, f in zip(places, floors, strict=True)]
    found: Any = 0.0
    for taps in itertools.product(*(share.items() for share in shares)):
        pixels = [floor + step for floor, (step, _) in zip(floors, taps, strict=True)]
        share: Any = math.prod(weight for _, weight in taps)
        found = found + _looked_up(x, inside(pixels) if cubic else pixels) * share.unsqueeze(1)
    return found  # type: ignore[no-any-return]


def _linear(part: Tensor) -> dict[int, Tensor]:
    """Return the weights of the pixels before and after a place, by the way from the pixel before."""
    return {0: 1 - part, 1: part}


def _cubic(part: Tensor, a: float = -0.75) -> dict[int, Tensor]:
    """Return the weights of four pixels (Keys, IEEE Trans. ASSP 29, 1981)."""

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return {-1: far(part + 1), 0: near(part), 1: near(1 - part), 2: far(2 - part)}


def grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """Read an image at places, with numbers for the modes."""
    modes = ("bilinear", "nearest", "bicubic")
    return grid_sample(x, grid, modes[mode], ("zeros", "border", "reflection")[padding], align_corners)


def _pixel(place: Tensor, length: int, aligned: bool) -> Tensor:
    return (place + 1) / 2 * (length - 1) if aligned else ((place + 1) * length - 1) / 2


def _inside(place: Tensor, length: int, padding: str, aligned: bool) -> Tensor:
    if padding == "zeros":
        return place
    if padding == "reflection":
        low, span = (0.0, length - 1.0) if aligned else (-0.5, float(length))
        if span:
            turned = torch.remainder((place - low).abs(), 2 * span)
            place = torch.where(turned > span, 2 * span - turned, turned) + low
        else:
            place = torch.zeros_like(place)
    return place.clamp(0, length - 1)


def _looked_up(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the pixels (B, C, …) at whole places; zeros outside."""
    lengths = x.shape[2:]
    valid: Any = None
    flat: Any = 0
    for place, length in zip(places, lengths, strict=True):
        inside = (place >= 0) & (place <= length - 1)
        valid = inside if valid is None else valid & inside
        flat = flat * length + place.clamp(0, length - 1).to(torch.int64)
    index = flat.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)  # (B, C, places)
    pixels = x.flatten(2).gather(2, index).reshape(*x.shape[:2], *flat.shape[1:])
    found: Tensor = pixels * valid.unsqueeze(1).to(x.dtype)
    return found
