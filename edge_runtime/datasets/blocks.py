"""Arrays on the disk, read in blocks: what was read is unmapped as reading goes on."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK_BYTES = 1 << 20
"""Bytes of a block, or those of one sample."""


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Yield consecutive samples of an array (N, …), each block with the number of its first sample."""
    step = max(1, BLOCK_BYTES // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])
        give_back(array)


def give_back(array: Array) -> None:
    """Unmap the pages that were read: they stay in the system's cache and do not count as this process's memory."""
    mapped = array.base
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)
