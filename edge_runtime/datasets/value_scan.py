"""What float labels are, from reading them once: which samples have one, and where the odd values are."""

# coverage: every branch

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.stored_array import blocks

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Place(NamedTuple):
    """A value and the sample that it is in."""

    value: float
    sample: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueScan:
    """The labels of one task in one set; None for what there is not."""

    labelled: Mask
    """(N,), the samples with a value that is not NaN. It takes no memory where all are."""
    partly_nan: Place | None
    """The first sample of which a part is NaN."""
    infinite: Place | None
    """The first sample with an infinite value."""
    lowest: Place | None
    highest: Place | None
    """The finite values furthest out."""


def everywhere(samples: int) -> Mask:
    """Return a mask (N,) that is True everywhere, in the memory of one element."""
    return np.broadcast_to(np.True_, samples)


def scan_values(labels: Array) -> ValueScan:
    """Read all labels (N, …) of a float type."""
    labelled: Mask = np.empty(len(labels), np.bool_)
    partly_nan: Place | None = None
    infinite: Place | None = None
    lowest, highest = Place(math.inf, -1), Place(-math.inf, -1)
    for start, block in blocks(labels):
        rows = block.reshape(len(block), -1)
        low, high = rows.min(), rows.max()
        if np.isfinite(low) and np.isfinite(high):  # the usual block
            labelled[start : start + len(rows)] = True
            finite = rows
        else:
            missing = np.isnan(rows)
            labelled[start : start + len(rows)] = np.logical_not(missing.all(1))
            partly = np.flatnonzero(missing.any(1) & labelled[start : start + len(rows)])
            if partly_nan is None and len(partly):
                partly_nan = Place(math.nan, start + int(partly[0]))
            odd = np.argwhere(np.isinf(rows))
            if infinite is None and len(odd):
                infinite = Place(float(rows[tuple(odd[0])]), start + int(odd[0][0]))
            finite = np.where(np.isfinite(rows), rows, np.nan)
            if not np.isfinite(finite).any():
                continue
            low, high = np.nanmin(finite), np.nanmax(finite)
        if low < lowest.value:
            lowest = Place(float(low), start + int(np.nanargmin(finite) // finite.shape[1]))
        if high > highest.value:
            highest = Place(float(high), start + int(np.nanargmax(finite) // finite.shape[1]))
    return ValueScan(
        labelled=everywhere(len(labels)) if labelled.all() else labelled,
        partly_nan=partly_nan,
        infinite=infinite,
        lowest=lowest if lowest.sample >= 0 else None,
        highest=highest if highest.sample >= 0 else None,
    )
