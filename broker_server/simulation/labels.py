"""Data sets with the labels of some tasks alone, or with blank inputs: the other files in a folder of links."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from devices.cli.settings import ConfigInvalid
from edge_runtime.datasets.dataset import input_names
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.names import Tasks, group_id


def with_labels(data: Mapping[str, Path], tasks_of: Mapping[str, Tasks], folder: Path) -> dict[str, Path]:
    """Each device's data set, where `tasks_of` names its tasks with these labels alone, linked below `folder`.

    Raises ConfigInvalid for a device without a data set, or a task without labels, DatasetInvalid for a description
    that cannot be read, and OSError as the file system does.
    """
    if odd := [device for device in tasks_of if device not in data]:
        raise ConfigInvalid(f"tasks_of: there is no data set {odd[0]!r}; there are {', '.join(data)}")
    for device, tasks in tasks_of.items():
        there = sorted({path.stem for path in (data[device] / "train").glob("*.npy")} - set(input_names(data[device])))
        if odd := [task for task in tasks if task not in there]:
            raise ConfigInvalid(f"tasks_of: {data[device]} has no labels of {odd[0]!r}; it has {', '.join(there)}")
    return {device: _linked(path, tasks_of.get(device), folder / device) for device, path in data.items()}


def with_blank_inputs(data: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Each device's data set with the same labels and inputs that are all zeros, below `folder`.

    Raises DatasetInvalid for a description that cannot be read, and OSError as the file system does.
    """
    for device, path in data.items():
        inputs = set(input_names(path))
        for file in _files(path):
            place = folder / device / file.relative_to(path)
            if file.suffix == ".json" or file.stem not in inputs:
                _link(place, file)
            elif not place.is_file():  # a run that goes on knows its data by their times
                stored, blank = np.load(file, mmap_mode="r", allow_pickle=False), io.BytesIO()
                np.save(blank, np.zeros_like(stored), allow_pickle=False)
                write_atomic(place, blank.getvalue())
    return {device: folder / device for device in data}


def _linked(data: Path, tasks: Tasks | None, folder: Path) -> Path:
    if tasks is None:
        return data
    folder = folder / group_id(tasks)
    for path in _files(data):
        if path.suffix == ".json" or path.stem in {*input_names(data), *tasks}:
            _link(folder / path.relative_to(data), path)
    return folder


def _files(data: Path) -> list[Path]:
    return [*data.glob("*.json"), *data.glob("*/*.npy")]


def _link(place: Path, file: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(file.resolve())
