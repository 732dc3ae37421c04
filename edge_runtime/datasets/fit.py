"""Whether a data set fits a bundle: shapes, types, and all labels by their tasks' contracts, before they are used.

Labels are never scaled unless their data set says so, so integers of a task of values are taken as they are if they are
0 and 1, and refused otherwise unless the data set states the factor.
"""

# coverage: every branch

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.class_balance import MOST_CLASSES, ClassCounts
from edge_runtime.datasets.dataset import DatasetInvalid, Split, convert
from edge_runtime.datasets.stored_array import blocks
from edge_runtime.datasets.value_scan import ValueScan
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.manifest import Input, Manifest, Task

Array = NDArray[Any]
Mask = NDArray[np.bool_]


def check_fits(manifest: Manifest, split: Split) -> None:
    """Raise DatasetInvalid unless the split has inputs and labels of the shapes, types and values that a bundle needs.

    All labels, and integers that go in, are read the first time that a split is asked about them.
    """
    for name, wanted in manifest.inputs.items():
        check_input(name, wanted, split)
    for task in manifest.tasks:
        if task.name not in split.labels:
            raise DatasetInvalid(f"the data set has no labels for {task.name}; it has {', '.join(split.tasks)}")
        labels = split.labels[task.name]
        if labels.shape[1:] != task.target.shape:
            raise DatasetInvalid(
                f"{split.file(task.name)}: labels are {labels.shape[1:]}, the bundle was compiled for "
                f"{task.target.shape}: save them in that shape, or compile the model for this one"
            )
        try:
            convert(labels[:1], task.target.dtype, split.factors.get(task.name))
        except DatasetInvalid as exc:
            raise DatasetInvalid(f"{split.file(task.name)}: {exc}") from exc
        check_labels(task, split)


def check_input(name: str, wanted: Input, split: Split) -> None:
    """Hold an input in a set to what a bundle has, and its integers to their number, the first time that it is asked.

    Raises DatasetInvalid, which names the file, the first sample that does not fit, its value and what to do.
    """
    array = split.inputs.get(name)
    if array is None:
        raise DatasetInvalid(
            f"the bundle has the input {name}, the data set has {', '.join(split.inputs)}: write {name}.npy, and name "
            f'it in dataset.json, as "inputs": ["{name}"]'
        )
    if array.shape[1:] != wanted.shape:
        raise DatasetInvalid(
            f"{split.file(name)}: samples are {array.shape[1:]}, the bundle was compiled for {wanted.shape}: "
            "import the data again at that size, or compile the model for this one"
        )
    if split.input_type(name) != wanted.dtype:
        more = f', or state in dataset.json what it is multiplied by, as "factors": {{"{name}": 1.0}}'
        raise DatasetInvalid(
            f"{split.file(name)} is {array.dtype}, the bundle was compiled for {wanted.dtype}: save it so"
            + (more if array.dtype.kind in "iu" and wanted.dtype == "float32" else "")
        )
    if wanted.count is not None and split.checked_inputs.get(name) != wanted:
        _check_numbers(wanted.count, array, split.file(name))
        split.checked_inputs[name] = wanted


def _check_numbers(count: int, values: Array, file: str) -> None:
    for start, block in blocks(values):
        bad = (block < 0) | (block >= count)
        if bad.any():
            raise DatasetInvalid(
                f"{_first(bad, start, file)}: {_value(bad, block)} is none of the {count} numbers 0 to {count - 1} "
                "that the model has a row for: write others, or compile a model with more rows"
            )


def check_labels(task: Task, split: Split) -> None:
    """Hold all labels of a task in a set to its contract, the first time that it is asked.

    Raises DatasetInvalid, which names the file, the first sample that does not fit, its value and what to do.
    """
    if split.checked.get(task.name) == task:
        return
    labels, file, factor = split.labels[task.name], split.file(task.name), split.factors.get(task.name)
    if labels.dtype.kind == "f":
        _check_values(task, split.scan(task.name), file, 1.0 if factor is None else factor)
    elif task.target.dtype == "float32":
        _check_integers_as_values(task, split)
    else:
        _check_classes(task, split)
    split.checked[task.name] = task


def _check_classes(task: Task, split: Split) -> None:
    contract, file = task.labels, split.file(task.name)
    if contract is None or contract.classes is None:
        return
    count = contract.classes
    counts = ClassCounts(count, contract.ignored) if count <= MOST_CLASSES else None
    for start, block in blocks(split.labels[task.name]):
        if counts is not None:
            counts.add(block)
        if block.min() >= 0 and block.max() < count:
            continue
        bad = ((block < 0) | (block >= count)) & np.isin(block, contract.ignored, invert=True)
        if bad.any():
            ignored = _ignored_text(contract)
            raise DatasetInvalid(
                f"{_first(bad, start, file)}: {_value(bad, block)} is none of the {count} classes 0 to {count - 1} of "
                f"{task.name}{ignored}: relabel it, or compile the model with a loss that ignores it, as "
                f"cross_entropy(ignore={_value(bad, block)})"
            )
    if counts is not None:
        split.class_counts[task.name] = counts.result()


def _ignored_text(contract: LabelContract) -> str:
    beyond = [str(value) for value in contract.ignored if not 0 <= value < (contract.classes or 0)]
    return f", nor {' or '.join(beyond)}, which its loss ignores" if beyond else ""


def _check_integers_as_values(task: Task, split: Split) -> None:
    file, factor = split.file(task.name), split.factors.get(task.name)
    counts = ClassCounts(2)
    for start, block in blocks(split.labels[task.name]):
        counts.add(block)
        if factor is not None:
            for at in (int(block.argmin()), int(block.argmax())):
                if (fault := _outside(task, np.float32(block.flat[at]), factor)) is not None:
                    raise DatasetInvalid(f"{file}, sample {start + at // (block.size // len(block))}: {fault}")
        elif block.min() < 0 or block.max() > 1:
            bad = (block < 0) | (block > 1)
            bounds = task.labels.bounds if task.labels is not None else None
            raise DatasetInvalid(
                f"{_first(bad, start, file)}: integers stand for the values of {task.name} only if they are 0 and 1, "
                f"and one is {_value(bad, block)}: save float32, or state in dataset.json what a label is multiplied "
                f'by, as "factors": {{"{task.name}": {1.0 if bounds is None else 1 / 255}}}'
            )
    if factor is None:
        split.class_counts[task.name] = counts.result()


def _check_values(task: Task, scan: ValueScan, file: str, factor: float) -> None:
    contract = task.labels
    if contract is None:
        return
    if scan.infinite is not None and not contract.inf:
        raise DatasetInvalid(
            f"{file}, sample {scan.infinite.sample}: {scan.infinite.value:g} is no value for {task.name}: save a "
            "number, or NaN where there is no label"
        )
    if scan.partly_nan is not None and not contract.nan:
        raise DatasetInvalid(
            f"{file}, sample {scan.partly_nan.sample}: a part of the label is NaN, which the loss of {task.name} "
            "cannot leave out: compile the model with a masked loss, as export.losses.masked_l1, or fill the gaps"
        )
    for place in (scan.lowest, scan.highest):
        if place is not None and (fault := _outside(task, np.float32(place.value), factor)) is not None:
            raise DatasetInvalid(f"{file}, sample {place.sample}: {fault}")


def _outside(task: Task, value: np.float32, factor: float) -> str | None:
    """Return what is wrong with a stored value that is outside of the loss's bounds; None if it is not."""
    if task.labels is None or task.labels.bounds is None:
        return None
    low, high = task.labels.bounds
    used = value * np.float32(factor)
    if low <= used <= high:
        return None
    return (
        f"{used:g} is outside of {low:g} to {high:g}, which the loss of {task.name} is for: save labels in that range, "
        f"as 0 and 1 for a mask, or state in dataset.json what they are multiplied by, as "
        f'"factors": {{"{task.name}": {1 / 255}}}'
    )


def _first(bad: Mask, start: int, file: str) -> str:
    return f"{file}, sample {start + int(np.argwhere(bad)[0][0])}"


def _value(bad: Mask, values: Array) -> str:
    return str(values[bad][0])
