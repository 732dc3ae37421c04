"""Whole buildings of rooms, written as Taskonomy's files, one folder for each building.

Every view follows from the seed and its own numbers alone: it does not matter how many processes draw, in which order,
or whether an earlier run was broken off. `rooms.json` says what a folder was drawn with.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_server.simulation.rooms.render import Order, draw_view
from edge_runtime.datasets.taskonomy import file_name, write_pixels
from edge_runtime.wire.files import write_atomic

RECORD = "rooms.json"
DRAWING = 1
"""Goes up whenever the same numbers would draw another picture."""
DOMAINS = (
    "rgb",
    "segment_semantic",
    "depth_zbuffer",
    "normal",
    "keypoints2d",
    "edge_texture",
    "edge_occlusion",
    "reshading",
    "principal_curvature",
)
CHUNK = 8
"""Views that a process draws before it says so."""


class RoomsInvalid(ValueError):
    """Rooms were asked for that cannot be drawn, or in a folder that holds something else."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn; it is kept beside the files."""

    buildings: Annotated[int, Meta(ge=1, le=1000)] = 4
    images: Annotated[int, Meta(ge=1, le=1_000_000)] = 200
    """Views of each building."""
    size: Annotated[int, Meta(ge=8, le=1024)] = 64
    """Pixels a side."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    drawing: int = DRAWING


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a run left behind."""

    folders: tuple[Path, ...]
    new: int
    """Views that were drawn now; the others were there already."""


def draw_buildings(
    out: Path, settings: Settings, *, processes: int = 2, report: Callable[[int, int], None] | None = None
) -> Drawn:
    """Draw every view that is not there yet, in one process or two; `report` is told views done and views in all.

    Raises RoomsInvalid for settings out of range, or if `out` holds rooms drawn with other settings or anything else
    in a building's place.
    """
    settings = _check(settings)
    folders = tuple(out / f"building_{building:02d}" for building in range(settings.buildings))
    _claim(out, folders, settings)
    orders = [order for order in _orders(settings) if not _is_there(folders[order.building], order)]
    chunks = [orders[begin : begin + CHUNK] for begin in range(0, len(orders), CHUNK)]
    total = settings.buildings * settings.images
    done = total - len(orders)
    for chunk in _draw_all(chunks, folders, processes):
        done += chunk
        if report is not None:
            report(done, total)
    return Drawn(folders=folders, new=len(orders))


def _check(settings: Settings) -> Settings:
    try:
        return msgspec.convert(msgspec.to_builtins(settings), Settings)
    except msgspec.ValidationError as exc:
        raise RoomsInvalid(f"rooms cannot be drawn so: {exc}") from exc


def _claim(out: Path, folders: tuple[Path, ...], settings: Settings) -> None:
    record = out / RECORD
    try:
        earlier = msgspec.json.decode(record.read_bytes(), type=Settings)
    except FileNotFoundError:
        if taken := [folder for folder in folders if folder.exists()]:
            message = f"{taken[0]} is there already, without a {RECORD} beside it: name another folder"
            raise RoomsInvalid(message) from None
        write_atomic(record, msgspec.json.encode(settings) + b"\n")
    except msgspec.MsgspecError as exc:
        raise RoomsInvalid(f"{record} is not understood: {exc}") from exc
    else:
        if earlier != settings:
            raise RoomsInvalid(f"{out} holds rooms drawn otherwise ({earlier}): name another folder, or delete it")
    for folder in folders:
        folder.mkdir(exist_ok=True)


def _orders(settings: Settings) -> Iterator[Order]:
    for building in range(settings.buildings):
        for image in range(settings.images):
            yield Order(seed=settings.seed, building=building, image=image, size=settings.size)


def _path(folder: Path, order: Order, domain: str) -> Path:
    return folder / file_name(order.point, order.view, domain)


def _is_there(folder: Path, order: Order) -> bool:
    return all(_path(folder, order, domain).exists() for domain in DOMAINS)


def _draw_all(chunks: list[list[Order]], folders: tuple[Path, ...], processes: int) -> Iterator[int]:
    if processes < 2 or len(chunks) < 2:
        for chunk in chunks:
            yield _draw(chunk, folders)
        return
    # Spawned, not forked: a progress bar's thread may be running.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C is the parent's: it lets the two finish the chunk that they are at.
    pool = ProcessPoolExecutor(2, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.map(_draw, chunks, [folders] * len(chunks))
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(chunk: list[Order], folders: tuple[Path, ...]) -> int:
    for order in chunk:
        pixels = draw_view(order)
        for domain in DOMAINS:
            write_pixels(_path(folders[order.building], order, domain), pixels[domain])
    return len(chunk)
