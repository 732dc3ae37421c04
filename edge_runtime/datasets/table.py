"""The import of tables (CSV with a head line): each row is a sample, or each window of rows that follow one another.

- An array is some columns, under a name: values (float32), or integers, as tokens and classes are.
- Windows: an input of C columns is (C, N) of N rows, and labels are those of one row, the last one or some rows ahead.
  A window lies within one file. Each file is cut in the order of its rows, the first part for training, then validation
  and test, and no window crosses a cut. Rows by themselves are distributed by a seeded permutation.
- An empty cell is a missing value. A label of values that is missing is NaN, which counts for nothing; a sample whose
  inputs or integers are not all there is left out, and the number of those is said.
"""

# coverage: every branch

import csv
import re
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.cli.run import UsageError
from edge_runtime.datasets.dataset import SPLITS, DatasetInvalid, Description, SplitName
from edge_runtime.datasets.dataset_writer import SplitWriter, remove_split, write_description
from edge_runtime.datasets.partition import Fractions, PartitionImpossible
from edge_runtime.wire.graph_names import IMAGE
from edge_runtime.wire.names import TASK_PATTERN

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Some columns of a table, which become one array of a data set: of integers, or of values."""

    names: tuple[str, ...]
    integers: bool = False


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """What becomes of a table: inputs and tasks by name, and how its rows are distributed."""

    inputs: Mapping[str, Columns]
    tasks: Mapping[str, Columns]
    window: int | None = None
    """Rows of a sample; None where each row is a sample by itself."""
    ahead: int = 0
    """Rows from a window's last one to the one that has its labels."""
    stride: int = 1
    """Rows from one window to the next."""
    fractions: Fractions = field(default_factory=Fractions)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.inputs or not self.tasks:
            raise UsageError("name at least one input and one task, as --input readings=a,b --task level=c")
        if twice := sorted(self.inputs.keys() & self.tasks.keys()):
            raise UsageError(f"{twice[0]!r} is an input and a task: a data set has one file of a name")
        for name in (*self.inputs, *self.tasks):
            if re.fullmatch(TASK_PATTERN, name) is None or name == IMAGE:
                raise UsageError(f"{name!r} cannot name an array of a table: use a to z, 0 to 9 and _, and not image")
        if self.window is None and (self.ahead or self.stride != 1):
            raise UsageError("--ahead and --stride are of windows: say how many rows one has, as --window 24")


@dataclass(frozen=True, kw_only=True)
class ImportedTable:
    """What was written: samples by set, and those that were left out because something is missing."""

    counts: dict[SplitName, int]
    left_out: int


Sample = tuple[dict[str, Array], dict[str, Array]]


def import_tables(files: Sequence[Path], folder: Path, settings: TableSettings) -> ImportedTable:
    """Write a data set of one table or several in `folder`. Raises DatasetInvalid and PartitionImpossible."""
    tables = [_read(path, settings) for path in files]
    rng = np.random.default_rng(settings.seed)
    places: dict[SplitName, list[tuple[int, int]]] = {name: [] for name in SPLITS}
    left_out = 0
    for number, (path, table) in enumerate(zip(files, tables, strict=True)):
        for name, firsts in _distributed(len(next(iter(table.values()))), settings, str(path), rng).items():
            whole = [first for first in firsts if _is_whole(table, first, settings)]
            places[name] += [(number, first) for first in whole]
            left_out += len(firsts) - len(whole)
    if not places["train"]:
        raise DatasetInvalid(f"no sample of {files[0]} has all of its inputs: name columns that are filled in")
    counts = {name: len(found) for name, found in places.items() if found}
    with ExitStack() as stack:
        for name, count in counts.items():
            writer = stack.enter_context(SplitWriter(folder / name, count))
            for number, first in places[name]:
                writer.add(*_sample(tables[number], first, settings))
    for name in set(SPLITS) - counts.keys():
        remove_split(folder / name)
    how = "rows" if settings.window is None else f"windows of {settings.window} rows"
    source = f"{how} of {', '.join(path.name for path in files)}"
    write_description(
        folder, Description(name=folder.name, source=source[:2000], inputs=tuple(settings.inputs), counts=counts)
    )
    return ImportedTable(counts=counts, left_out=left_out)


def _read(path: Path, settings: TableSettings) -> dict[str, NDArray[np.float64]]:
    """Return the columns (R,) that are asked for; what is missing is NaN."""
    wanted = dict.fromkeys(name for each in _all(settings).values() for name in each.names)
    whole = {name for each in _all(settings).values() if each.integers for name in each.names}
    found = {name: array("d") for name in wanted}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            head = rows.fieldnames or []
            if absent := sorted(wanted.keys() - set(head)):
                raise DatasetInvalid(f"{path} has no column {absent[0]!r}; it has {', '.join(map(repr, head[:20]))}")
            for row in rows:
                for name, values in found.items():
                    values.append(_number(row[name], f"{path}, line {rows.line_num}: {name}", whole=name in whole))
    except (UnicodeDecodeError, csv.Error) as exc:
        raise DatasetInvalid(f"{path} is not a table of text (CSV): {exc}") from exc
    return {name: np.array(values, np.float64) for name, values in found.items()}


def _number(cell: str | None, where: str, *, whole: bool) -> float:
    text = (cell or "").strip()
    if text.lower() in ("", "na", "nan"):
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("inf")
    if not np.isfinite(value) or (whole and not (value.is_integer() and abs(value) < 2**31)):
        kind = "whole number" if whole else "number"
        raise DatasetInvalid(f"{where} is {text[:40]!r}, which is no {kind}: number what is text, and leave gaps empty")
    return value


def _all(settings: TableSettings) -> dict[str, Columns]:
    return {**settings.inputs, **settings.tasks}


def _distributed(rows: int, settings: TableSettings, what: str, rng: np.random.Generator) -> dict[SplitName, list[int]]:
    """Return the first rows of the samples of each set."""
    if settings.window is None:
        counts = settings.fractions.counts(rows, f"the rows of {what}")
        order = rng.permutation(rows).tolist()
        ends = np.cumsum(counts).tolist()
        return {name: sorted(order[end - count : end]) for name, count, end in zip(SPLITS, counts, ends, strict=True)}
    reach = settings.window + settings.ahead
    counts = settings.fractions.counts(rows, f"the rows of {what}")
    found: dict[SplitName, list[int]] = {}
    start = 0
    for name, count in zip(SPLITS, counts, strict=True):
        found[name] = list(range(start, start + count - reach + 1, settings.stride))
        if count and not found[name]:
            raise PartitionImpossible(
                f"{what} has {count} rows for {name}, and a window with its label takes {reach}: give more rows, or a "
                "share of 0"
            )
        start += count
    return found


def _is_whole(table: Mapping[str, Array], first: int, settings: TableSettings) -> bool:
    inputs, labels = _sample(table, first, settings, np.float64)
    needed = [*inputs.values(), *(labels[name] for name, each in settings.tasks.items() if each.integers)]
    return not any(np.isnan(values).any() for values in needed)


def _sample(table: Mapping[str, Array], first: int, settings: TableSettings, dtype: Any = None) -> Sample:
    """Return inputs and labels of the sample that begins with a row; `dtype` is theirs by default."""
    length = settings.window or 1
    last = first + length - 1 + settings.ahead

    def taken(each: Columns, rows: Any) -> Array:
        return np.array(
            [table[name][rows] for name in each.names], dtype or (np.int64 if each.integers else np.float32)
        )

    rows: Any = first if settings.window is None else slice(first, first + length)
    inputs = {name: taken(each, rows) for name, each in settings.inputs.items()}
    labels = {name: taken(each, last) for name, each in settings.tasks.items()}
    for name, each in settings.tasks.items():
        if each.integers and len(each.names) == 1:  # a class, as cross-entropy takes it
            labels[name] = labels[name][0]
    return inputs, labels


def columns(text: str, *, integers: bool = False) -> tuple[str, Columns]:
    """Return an array's name and its columns, written as name=a,b. Raises ValueError."""
    name, equals, listed = text.partition("=")
    found = tuple(column.strip() for column in listed.split(","))
    if not equals or not all(found):
        raise ValueError(f"{text!r} is not of the form name=column,column")
    return name.strip(), Columns(names=found, integers=integers)
