"""The import of Taskonomy's files: a data set for each building, with three sets of different images.

- Whole views: views of one point stay in one set, and a seeded permutation assigns points to sets. A view is cut to its
  largest square in the middle and resized.
- Crops: each view is cut into rectangles, each rectangle belongs to one set, and a crop lies in pixels of one set
  alone. Crops of one set may overlap.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.cli.run import UsageError
from edge_runtime.datasets.dataset import SPLITS, DatasetInvalid, Description, SplitName
from edge_runtime.datasets.dataset_writer import SplitWriter, remove_split, write_description
from edge_runtime.datasets.partition import Fractions, draw_corners, regions, split_keys
from edge_runtime.datasets.resample import resample, unit_length
from edge_runtime.datasets.taskonomy import TASKS, View, find_views, read_view

Array = NDArray[Any]
OnProgress = Callable[[str, int, int], None]
"""Called with the progress: the building, views done, and views in all."""

MAX_SIZE = 2048


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """The settings of an import. Raises UsageError for one out of its bounds."""

    size: int = 64
    """Pixels a side of an image."""
    crops: int | None = None
    """Crops for each view; None resizes whole views."""
    tasks: tuple[str, ...] | None = None
    """None: the tasks whose domains every view of every building has."""
    fractions: Fractions = field(default_factory=Fractions)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise UsageError(f"images have 1 to {MAX_SIZE} pixels a side, not {self.size}")
        if self.crops is not None and self.crops < 1:
            raise UsageError(f"a view is cut into one crop or more, not {self.crops}")
        if self.seed < 0:
            raise UsageError(f"a seed is 0 or more, not {self.seed}")
        if self.tasks is not None:
            if not self.tasks:
                raise UsageError("no task is named")
            if unknown := [task for task in self.tasks if task not in TASKS]:
                raise UsageError(f"{unknown[0]!r} is no task; the tasks are {', '.join(TASKS)}")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A data set that was imported."""

    building: str
    folder: Path
    tasks: tuple[str, ...]
    counts: dict[SplitName, int]
    """Images by set, without the empty ones."""


def import_folder(
    source: Path, out: Path, settings: ImportSettings, on_progress: OnProgress | None = None
) -> list[Imported]:
    """Write a data set into `out` for each building below `source`; it replaces one of the same name.

    Raises DatasetInvalid, naming the file, for a missing domain, a damaged file or one of a wrong size;
    PartitionImpossible where there are too few views or pixels.
    """
    if not source.is_dir():
        raise DatasetInvalid(f"{source} is not a folder")
    buildings = find_views(source)
    tasks = _choose_tasks(source, buildings, settings)
    return [
        _import_building(views, out / building, tasks, settings, on_progress) for building, views in buildings.items()
    ]


def _choose_tasks(source: Path, buildings: dict[str, list[View]], settings: ImportSettings) -> tuple[str, ...]:
    if settings.tasks is not None:
        return tuple(sorted(set(settings.tasks)))
    shared = set.intersection(*(set(view.files) for views in buildings.values() for view in views))
    tasks = tuple(task for task, origin in sorted(TASKS.items()) if shared.issuperset(origin.domains))
    if not tasks:
        raise DatasetInvalid(f"no task has its domains in every view below {source}")
    return tasks


Example = tuple[SplitName, Array, dict[str, Array]]
"""The set, the image (3, S, S) and the labels of one example."""


def _import_building(
    views: list[View], folder: Path, tasks: tuple[str, ...], settings: ImportSettings, on_progress: OnProgress | None
) -> Imported:
    building = views[0].building
    # By the building's name: the data set of a building does not depend on the other buildings.
    seeds = (settings.seed, *building.encode())
    examples: Callable[[View], Iterator[Example]]
    if settings.crops is None:
        rng = np.random.default_rng(seeds)
        sets = split_keys(sorted({view.point for view in views}), settings.fractions, f"the points of {building}", rng)
        counts = [sum(sets[view.point] == name for view in views) for name in SPLITS]
        examples = partial(_whole, sets=sets, tasks=tasks, size=settings.size)
    else:
        each = settings.fractions.counts(settings.crops, "the crops of a view")
        counts = [count * len(views) for count in each]
        examples = partial(_crops, counts=each, tasks=tasks, settings=settings, seeds=seeds)
    there = {name: count for name, count in zip(SPLITS, counts, strict=True) if count}

    with ExitStack() as stack:
        writers = {name: stack.enter_context(SplitWriter(folder / name, count)) for name, count in there.items()}
        for done, view in enumerate(views, 1):
            for name, image, labels in examples(view):
                writers[name].add(image, labels)
            if on_progress is not None:
                on_progress(building, done, len(views))
    for name in set(SPLITS) - set(there):
        remove_split(folder / name)
    how = "whole views" if settings.crops is None else f"{settings.crops} crops a view"
    description = Description(
        name=building,
        source=f"{how} of {settings.size} pixels from files in Taskonomy's form, seed {settings.seed}",
        scales={task: TASKS[task].scale for task in tasks},
        factors={task: factor for task in tasks if (factor := TASKS[task].factor) is not None},
        counts=there,
    )
    write_description(folder, description)
    return Imported(building=building, folder=folder, tasks=tasks, counts=there)


def _read(view: View, tasks: tuple[str, ...], size: int) -> tuple[Array, dict[str, Array]]:
    image, labels = read_view(view, tasks)
    if min(image.shape[1:]) < size:
        raise DatasetInvalid(
            f"{view.files['rgb']} is {image.shape[2]}x{image.shape[1]} pixels, less than the {size} a side asked for"
        )
    return image, labels


def _whole(view: View, *, sets: dict[int, SplitName], tasks: tuple[str, ...], size: int) -> Iterator[Example]:
    image, labels = _read(view, tasks, size)
    labels = {task: resample(_square(label), size) for task, label in labels.items()}
    if "normals" in labels:  # the mean of two directions is shorter than either
        labels["normals"] = unit_length(labels["normals"])
    yield sets[view.point], resample(_square(image), size), labels


def _square(pixels: Array) -> Array:
    """Return the largest square in the middle of (…, H, W)."""
    height, width = pixels.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side]


def _crops(
    view: View, *, counts: Sequence[int], tasks: tuple[str, ...], settings: ImportSettings, seeds: tuple[int, ...]
) -> Iterator[Example]:
    size = settings.size
    image, labels = _read(view, tasks, size)
    rng = np.random.default_rng((*seeds, view.point, view.view))
    what = str(view.files["rgb"])
    sets = regions(image.shape[-2:], size, settings.fractions, what, rng)
    for name, places in draw_corners(sets, size, counts, what, rng).items():
        for row, column in places:
            window = (..., slice(row, row + size), slice(column, column + size))
            yield name, image[window], {task: label[window] for task, label in labels.items()}
