"""An array on the disk whose samples are read as they are needed: nothing that was read stays in memory.

It is a memory map for whoever looks at it as an array, but samples and blocks are read from the file, not through the
map: reading through a map makes each page that is touched, and the sixteen around it, memory of the process.
"""

# coverage: every branch

import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK_BYTES = 1 << 20
"""Bytes of a block, or those of one sample."""


class StoredArray(np.memmap[Any, Any]):
    """The array (N, …) in a file, from an offset on. Its samples can be read without mapping them."""

    descriptor: int | None = None
    """The open file, of the array itself and not of views of it; None where samples do not lie one after another."""

    @classmethod
    def open(cls, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: str) -> "StoredArray":
        """Map an array whose header was checked. Raises OSError, and ValueError for a file that is too short."""
        array = cast("StoredArray", cls(path, dtype, "r", offset, shape, order))  # type: ignore[call-overload]
        if order == "C":
            array.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(array, os.close, array.descriptor)
        return array


def read_samples(array: Array, chosen: NDArray[np.int64]) -> Array:
    """Return a copy of some samples, C-contiguous. Raises IndexError for one outside, OSError for a file cut short."""
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(array)):
        raise IndexError(f"samples {chosen.min()} to {chosen.max()} of {len(array)}")
    descriptor = getattr(array, "descriptor", None)
    if descriptor is None or not isinstance(array, StoredArray):
        rows = np.array(array[chosen], order="C")
        _give_back(array)
        return rows
    rows = np.empty((len(chosen), *array.shape[1:]), array.dtype)
    sample_bytes, offset = rows.nbytes // max(1, len(rows)), array.offset
    into = rows.reshape(len(rows), -1).view(np.uint8) if rows.size else rows
    if len(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1 and (np.diff(chosen) == 1).all():
        _read(descriptor, into, offset + int(chosen[0]) * sample_bytes, array)
    else:
        for row, sample in zip(into, chosen.tolist(), strict=True):
            _read(descriptor, row, offset + sample * sample_bytes, array)
    return rows


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Yield all samples of an array (N, …) in blocks, each with the number of its first sample."""
    step = max(1, BLOCK_BYTES // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), step):
        yield start, read_samples(array, np.arange(start, min(start + step, len(array))))


def _read(descriptor: int, into: Array, offset: int, array: StoredArray) -> None:
    view, done = into.data.cast("B"), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(0, "the file was cut short while it was in use", str(array.filename))
        done += count


def _give_back(array: Array) -> None:
    """Unmap the pages that were read: they stay in the system's cache and do not count as this process's memory."""
    if isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)
