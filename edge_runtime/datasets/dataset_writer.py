"""Writing data sets: a set image by image, and dataset.json, so that what is there is whole."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.dataset import DESCRIPTION, Description
from edge_runtime.wire.files import sync_folder, write_atomic
from edge_runtime.wire.graph_names import IMAGE
from edge_runtime.wire.names import TASK_PATTERN

Array = NDArray[Any]


@final
class SplitWriter:
    """Writes one set image by image, so that it need not fit in memory; the files appear when it is closed.

    A context manager: after an exception the folder is without the new set. The new set replaces an earlier one.
    """

    def __init__(self, folder: Path, count: int) -> None:
        if count < 1:
            raise ValueError("a set has at least one image")
        self.folder = folder
        self.count = count
        self._written = 0
        self._arrays: dict[str, Array] = {}
        self._inputs: frozenset[str] = frozenset()

    def __enter__(self) -> "SplitWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, given: Array | Mapping[str, Array], labels: Mapping[str, Array]) -> None:
        """Write the next image (C, H, W), or inputs (…) by name, and the labels (…), by task.

        Raises ValueError for arrays of another shape, type or name than the first.
        """
        inputs = given if isinstance(given, Mapping) else {IMAGE: given}
        arrays = {**inputs, **{task: labels[task] for task in sorted(labels)}}
        if not self._arrays:
            if unnamed := [task for task in labels if task in inputs or re.fullmatch(TASK_PATTERN, task) is None]:
                raise ValueError(f"{unnamed[0]!r} cannot name a task: a to z, 0 to 9 and _ only, and not image")
            self._inputs = frozenset(inputs)
            self._arrays = {name: self._create(name, array) for name, array in arrays.items()}
        if self._written == self.count or arrays.keys() != self._arrays.keys():
            raise ValueError(f"{self.folder} was begun for {self.count} images with {', '.join(self._arrays)}")
        for name, array in arrays.items():
            target = self._arrays[name]
            if (array.shape, array.dtype) != (target.shape[1:], target.dtype):
                raise ValueError(
                    f"{name} has shape {array.shape} of {array.dtype}, the first one {target.shape[1:]} of "
                    f"{target.dtype}"
                )
            target[self._written] = array
        self._written += 1

    def _create(self, name: str, array: Array) -> Array:
        shape = (self.count, *array.shape)
        return np.lib.format.open_memmap(self._part(name), "w+", array.dtype, shape)

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}.npy.part"

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        names = tuple(self._arrays)
        for array in self._arrays.values():
            assert isinstance(array, np.memmap)
            array.flush()
        self._arrays = {}
        if kind is not None or self._written != self.count:
            for name in names:
                self._part(name).unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
            if kind is None:
                raise ValueError(f"{self.folder} got {self._written} of the {self.count} images it was begun for")
            return
        remove_split(self.folder)
        self.folder.mkdir(exist_ok=True)
        for name in sorted(names, key=lambda name: name in self._inputs):  # inputs last: a set that has them is whole
            self._part(name).replace(self.folder / f"{name}.npy")
        sync_folder(self.folder)


def remove_split(folder: Path) -> None:
    """Remove a set's arrays, and its folder if it is empty then."""
    for path in folder.glob("[!.]*.npy"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_split(folder: Path, image: Array, labels: Mapping[str, Array]) -> None:
    """Write one set: `image` (N, C, H, W), labels (N, …) by task. It replaces an earlier set in `folder`.

    Raises ValueError for a label with another N, a name that no task can have, or an empty set.
    """
    if unequal := [task for task, array in labels.items() if len(array) != len(image)]:
        raise ValueError(f"{unequal[0]} has labels of {len(labels[unequal[0]])} images, there are {len(image)} images")
    with SplitWriter(folder, len(image)) as writer:
        for index in range(len(image)):
            writer.add(image[index], {task: np.asarray(array[index]) for task, array in labels.items()})


def write_description(folder: Path, description: Description) -> None:
    """Write dataset.json: the same content gives the same bytes."""
    data = msgspec.json.format(msgspec.json.encode(description, order="deterministic"), indent=1) + b"\n"
    write_atomic(folder / DESCRIPTION, data)
