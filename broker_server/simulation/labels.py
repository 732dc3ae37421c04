"""Data sets with the labels of some tasks alone: the same files in a folder of links."""

from collections.abc import Mapping
from pathlib import Path

from devices.cli.settings import ConfigInvalid
from edge_runtime.datasets.dataset import input_names
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


def _linked(data: Path, tasks: Tasks | None, folder: Path) -> Path:
    if tasks is None:
        return data
    folder = folder / group_id(tasks)
    for path in (*data.glob("*.json"), *data.glob("*/*.npy")):
        if path.suffix == ".json" or path.stem in {*input_names(data), *tasks}:
            link = folder / path.relative_to(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return folder
