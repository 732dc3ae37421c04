"""A data set: a folder of plain arrays, memory-mapped, which numpy alone can write.

    DATA/
        train/image.npy         (N, C, H, W)  uint8 (scaled by 1/255 when read) or float32 (taken as it is)
        train/<input>.npy       (N, …)        any integer, or float32: what dataset.json names as inputs
        train/<task>.npy        (N, …)        any integer, or float32
        val/…  test/…           the same, both optional
        dataset.json            optional: inputs, names, scales, factors, source, counts

Rules
- Inputs are what dataset.json names so, or image. float32 is taken as it is, integers times the factor that
  dataset.json states, an image's bytes times 1/255, and other integers, as tokens, as they are.
- Labels are class numbers where a task wants int64, and any integer type has them as they are. They are values where a
  task wants float32: float32, or integers that dataset.json states a factor for, or the integers 0 and 1. Labels are
  never scaled unless it states a factor. NaN in a float32 label marks a pixel without a label; a sample whose label is
  NaN everywhere has none of that task.
- All sets in the folder have the same inputs and tasks, of the same shapes and types.
- Nothing is unpickled: an array of objects is refused.

This module runs on boards: it needs numpy and msgspec alone.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_runtime.datasets.stored_array import StoredArray, read_samples
from edge_runtime.datasets.value_scan import ValueScan, everywhere, scan_values
from edge_runtime.wire.graph_names import IMAGE
from edge_runtime.wire.manifest import MAX_INPUTS, Input, Task
from edge_runtime.wire.names import MAX_TASKS, TASK_PATTERN, TaskName

Array = NDArray[Any]
Mask = NDArray[np.bool_]
ArrayType = Literal["float32", "int64"]

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
DESCRIPTION = "dataset.json"
MAX_DESCRIPTION_BYTES = 1024**2

BYTES_OF_IMAGE = "the image, 1/255"
"""What imports say in `scales` of labels that are an image's bytes; those of before stated no factor for them."""

# The exceptions of numpy for a broken header of an .npy file.
BROKEN_HEADER = (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError)


class DatasetInvalid(ValueError):
    """A data set, or a file to import, is missing, damaged or not of its form."""


class DatasetAbsent(DatasetInvalid):
    """There is no data set yet: its folder, or the folder train in it, is not there."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The content of dataset.json."""

    name: Annotated[str, Meta(max_length=200)] = ""
    source: Annotated[str, Meta(max_length=2000)] = ""
    inputs: Annotated[tuple[TaskName, ...], Meta(max_length=MAX_INPUTS)] = ()
    """The arrays that go into a model; the image where none is named."""
    scales: dict[TaskName, str | float] = {}
    """The meaning of each task's label values: text, or the factor that the original values were multiplied by."""
    factors: dict[TaskName, Annotated[float, Meta(gt=0, le=1e9)]] = {}
    """What stored labels and inputs are multiplied by when they are read; the others are taken as they are."""
    counts: dict[SplitName, Annotated[int, Meta(ge=0)]] = {}
    """Samples in each set."""

    def all_factors(self) -> dict[str, float]:
        """Return the factors by task, with those that imports of before meant by their text."""
        before = {task: 1 / 255 for task, scale in self.scales.items() if scale == BYTES_OF_IMAGE}
        return {**before, **self.factors}


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One of the sets: inputs and labels on the disk, which are read for each batch."""

    inputs: dict[str, Array]
    """(N, …) by name, float32 or any integer."""
    labels: dict[str, Array]
    """(N, …) by task, in the order of the names."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """What an input or the labels of a task are multiplied by when they are read, where the data set states it."""
    checked: dict[str, Task] = field(default_factory=dict, repr=False)
    """The tasks whose contract all labels are known to keep."""
    checked_inputs: dict[str, Input] = field(default_factory=dict, repr=False)
    """The inputs whose integers are all known to be within their number."""
    class_counts: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """How often each class is among the labels of a task, for tasks of classes that are checked."""
    _scans: dict[str, ValueScan] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of samples in the set."""
        return int(next(iter(self.inputs.values())).shape[0])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have labels, in the order of their names."""
        return tuple(self.labels)

    def file(self, name: str) -> str:
        """Return the path of an input or of a task's labels, for messages."""
        array = self.inputs[name] if name in self.inputs else self.labels[name]
        return str(getattr(array, "filename", f"{name}.npy"))

    def labelled(self, task: str) -> Mask:
        """Return a mask (N,) of the samples with a label of a task; all False for a task without labels."""
        labels = self.labels.get(task)
        if labels is None:
            return np.zeros(len(self), np.bool_)
        return self.scan(task).labelled if labels.dtype.kind == "f" else everywhere(len(self))

    def scan(self, task: str) -> ValueScan:
        """Return what the float labels of a task are; they are read the first time that it is asked."""
        if task not in self._scans:
            self._scans[task] = scan_values(self.labels[task])
        return self._scans[task]

    def examples(self, tasks: Iterable[str]) -> dict[str, int]:
        """Return the number of labelled samples by task, without the tasks that have none."""
        counts = {task: int(self.labelled(task).sum()) for task in tasks}
        return {task: count for task, count in counts.items() if count}

    def input_factor(self, name: str) -> float | None:
        """Return what an input is multiplied by when it is read: as stated, and 1/255 for an image's bytes."""
        default = 1 / 255 if name == IMAGE and self.inputs[name].dtype == np.uint8 else None
        return self.factors.get(name, default)

    def input_type(self, name: str) -> ArrayType:
        """Return the type of an input when it has been read: int64 for integers without a factor."""
        return "float32" if self.inputs[name].dtype.kind == "f" or self.input_factor(name) else "int64"

    def batch(
        self,
        indices: Sequence[int] | NDArray[np.integer[Any]],
        tasks: Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return inputs (B, …), float32 or int64, and labels (B, …) as stored, by name: some of them, or all.

        Raises IndexError for an index outside of the set, KeyError for an input or a task that is not there, and
        DatasetInvalid for an input that has NaN or an infinite value.
        """
        chosen = np.asarray(indices, np.int64)
        found = {name: self._input(name, chosen) for name in (self.inputs if inputs is None else inputs)}
        return found, {
            task: read_samples(self.labels[task], chosen) for task in (self.tasks if tasks is None else tasks)
        }

    def _input(self, name: str, chosen: NDArray[np.int64]) -> Array:
        stored = read_samples(self.inputs[name], chosen)
        values = convert(stored, self.input_type(name), self.input_factor(name))
        if stored.dtype.kind == "f" and not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0]
            raise DatasetInvalid(
                f"{self.file(name)}, sample {chosen[place[0]]}: it has the value {values[tuple(place)]:g}, which no "
                "model can be trained on: mend the sample, or leave it out with its labels"
            )
        return values


def convert(labels: Array, dtype: ArrayType, factor: float | None) -> Array:
    """Return labels, or an input, in the type of the graphs, as a new array, multiplied by their data set's factor.

    Any integer → int64 keeps the class numbers, float32 → float32 and integers → float32 the values.
    Raises DatasetInvalid for any other pair, and for a factor of classes.
    """
    if dtype == "int64" and labels.dtype.kind in "iu":
        if factor is not None:
            raise DatasetInvalid("class numbers are never scaled: take their factor out of dataset.json")
        return labels.astype(np.int64, order="C")
    if dtype == "float32" and (labels.dtype == np.float32 or labels.dtype.kind in "iu"):
        if factor is None:
            return labels.astype(np.float32, order="C")
        return np.multiply(labels, np.float32(factor), dtype=np.float32, order="C")
    wanted = "float32 values" if dtype == "float32" else "class numbers of an integer type"
    raise DatasetInvalid(f"labels of type {labels.dtype} cannot be used for a task of {wanted}: save them as {wanted}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set, checked and memory-mapped."""

    folder: Path
    splits: dict[SplitName, Split | None]
    """The sets train, val and test; None for an absent one. Train is always there."""
    description: Description

    @property
    def train(self) -> Split:
        """The samples to train on."""
        split = self.splits["train"]
        assert split is not None
        return split

    @property
    def val(self) -> Split | None:
        """The samples to validate on, if there are any."""
        return self.splits["val"]

    @property
    def test(self) -> Split | None:
        """The samples to test on, if there are any."""
        return self.splits["test"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have labels, in the order of their names."""
        return self.train.tasks

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open the data set in `folder`. Raises DatasetInvalid, naming the file, unless all of it is well-formed.

        DatasetAbsent, if there is none.
        """
        if not (folder / "train").is_dir():
            raise DatasetAbsent(f"{folder} is not a data set: it has no folder train")
        description = _read_description(folder / DESCRIPTION)
        splits = {
            name: _open_split(folder / name, description) if (folder / name).is_dir() else None for name in SPLITS
        }
        dataset = cls(folder=folder, splits=splits, description=description)
        for name, split in splits.items():
            if split is None:
                continue
            _check_alike(folder, name, split, dataset.train)
            count = dataset.description.counts.get(name, len(split))
            if count != len(split):
                first = next(iter(split.inputs))
                raise DatasetInvalid(
                    f"{folder / DESCRIPTION} counts {count} samples in {name}, {folder / name / first}.npy has "
                    f"{len(split)}"
                )
        return dataset


def state_of(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return what changes with any file of a data set: its name, inode, size and time. An absent one has none."""
    paths = [folder / DESCRIPTION, *(path for name in SPLITS for path in sorted((folder / name).glob("*.npy")))]
    found = []
    for path in paths:
        with suppress(OSError):
            now = path.stat()
            found.append((str(path.relative_to(folder)), now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)


def _check_alike(folder: Path, name: str, split: Split, train: Split) -> None:
    if split.tasks != train.tasks:
        task = min(set(split.tasks) ^ set(train.tasks))
        present, absent = (name, "train") if task in split.tasks else ("train", name)
        raise DatasetInvalid(f"{folder / present / task}.npy has no counterpart in {folder / absent}")
    for task, array in {**split.inputs, **split.labels}.items():
        other = {**train.inputs, **train.labels}[task]
        if (array.shape[1:], array.dtype) != (other.shape[1:], other.dtype):
            raise DatasetInvalid(
                f"{folder / name / task}.npy has elements {array.shape[1:]} of {array.dtype}, the training set has "
                f"{other.shape[1:]} of {other.dtype}"
            )


def input_names(folder: Path) -> tuple[str, ...]:
    """Return the names of a data set's inputs. Raises DatasetInvalid for a description that cannot be read."""
    return _read_description(folder / DESCRIPTION).inputs or (IMAGE,)


def _open_split(folder: Path, description: Description) -> Split:
    inputs = {name: _input_file(folder, name, description) for name in description.inputs or (IMAGE,)}
    first, array = next(iter(inputs.items()))
    count = array.shape[0]
    labels: dict[str, Array] = {}
    for path in sorted(folder.glob("[!.]*.npy")):
        task = path.stem
        if task in inputs:
            continue
        if re.fullmatch(TASK_PATTERN, task) is None or len(labels) == MAX_TASKS:
            raise DatasetInvalid(f"{path} does not name a task (a to z, 0 to 9 and _), or is one of over {MAX_TASKS}")
        array = _map(path)
        if array.dtype != np.float32 and array.dtype.kind not in "iu":
            raise DatasetInvalid(f"{path} is {array.dtype}: save labels as an integer type or float32")
        labels[task] = array
    for name, array in {**inputs, **labels}.items():
        if array.shape[0] != count:
            raise DatasetInvalid(
                f"{folder / name}.npy has shape {array.shape}, for {count} samples in {first}.npy beside it"
            )
    factors = description.all_factors()
    return Split(
        inputs=inputs, labels=labels, factors={name: factors[name] for name in factors if name in inputs | labels}
    )


def _input_file(folder: Path, name: str, description: Description) -> Array:
    path = folder / f"{name}.npy"
    if not description.inputs and not path.exists():
        raise DatasetInvalid(
            f"{path} is missing from the data set: where no images go into the model, name what does in "
            f'{folder.parent / DESCRIPTION}, as "inputs": ["signal"]'
        )
    array = _map(path)
    if array.dtype != np.float32 and array.dtype.kind not in "iu":
        raise DatasetInvalid(f"{path} is {array.dtype}: save inputs as an integer type or float32")
    return array


def _map(path: Path) -> Array:
    """Map the array in a file, after checking its header against the file's length. Raises DatasetInvalid."""
    try:
        with path.open("rb") as file:
            shape, by_columns, dtype = _read_header(file)
            offset, length = file.tell(), os.fstat(file.fileno()).st_size
        if dtype.hasobject:
            raise DatasetInvalid(f"{path} holds Python objects, which are never loaded: save plain numbers")
        if not shape or min(shape) < 1:
            raise DatasetInvalid(f"{path} has shape {shape}: one or more images are needed, and no side of 0")
        if offset + math.prod(shape) * dtype.itemsize != length:
            raise DatasetInvalid(f"{path} is truncated, or longer than its shape {shape} of {dtype} states")
        return StoredArray.open(path, dtype, offset, shape, "F" if by_columns else "C")
    except FileNotFoundError as exc:
        raise DatasetInvalid(f"{path} is missing from the data set") from exc
    except OSError as exc:
        raise DatasetInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except BROKEN_HEADER as exc:
        if isinstance(exc, DatasetInvalid):
            raise
        raise DatasetInvalid(f"{path} is truncated or not an .npy file: write it again with numpy.save") from exc


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the format is for names of fields, which images and labels do not have")


def _read_description(path: Path) -> Description:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Description()
    except OSError as exc:
        raise DatasetInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_DESCRIPTION_BYTES:
        raise DatasetInvalid(f"{path} has {len(data)} bytes, over the {MAX_DESCRIPTION_BYTES} allowed")
    try:
        return msgspec.json.decode(data, type=Description)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise DatasetInvalid(f"{path} is not a data set's description: {exc}") from exc
