"""What the labels of a data set are: classes and their shares, or values and their range, without a model."""

# coverage: every branch

import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.class_balance import MOST_CLASSES
from edge_runtime.datasets.dataset import Split
from edge_runtime.datasets.stored_array import blocks

Array = NDArray[Any]


class LabelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The labels of one task in one set, as they are used: multiplied by their factor, where there is one."""

    labelled: int
    """Samples with a label."""
    elements: int
    """Elements of labels in all, as pixels."""
    low: float | None
    high: float | None
    """The least and the greatest finite value; None where there is none."""
    missing: int
    """Elements that are NaN."""
    infinite: int
    classes: dict[int, int] | None
    """Elements of each value, of integers without a factor that have at most MOST_CLASSES values; None otherwise."""

    def text(self) -> str:
        """Return the summary as a line: the rarest and the most frequent class, or the range of the values."""
        parts = [f"{self.labelled} labelled"]
        if self.classes:
            shares = {name: count / self.elements for name, count in self.classes.items()}
            most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
            parts.append(f"{len(shares)} values from {min(shares)} to {max(shares)}")
            parts.append(f"{most} is the most frequent ({shares[most]:.1%}), {least} the rarest ({shares[least]:.2%})")
            if len(shares) > 1:
                parts.append(f"imbalance {max(shares.values()) / min(shares.values()):,.0f} to 1")
        elif self.low is not None and self.high is not None:
            parts.append(f"values from {self.low:g} to {self.high:g}")
        if self.missing:
            parts.append(f"{self.missing / self.elements:.1%} NaN")
        if self.infinite:
            parts.append(f"{self.infinite} infinite")
        return ", ".join(parts)


def summary(split: Split, task: str) -> LabelSummary:
    """Return what the labels of a task in a set are; all of them are read."""
    labels, factor = split.labels[task], split.factors.get(task)
    low, high, missing, infinite = math.inf, -math.inf, 0, 0
    counts: Counter[int] | None = Counter() if labels.dtype.kind in "iu" and factor is None else None
    for _, block in blocks(labels):
        finite = block
        if block.dtype.kind == "f":
            finite = block[np.isfinite(block)]
            missing += int(np.isnan(block).sum())
            infinite += int(np.isinf(block).sum())
        if counts is not None:
            values, found = np.unique(block, return_counts=True)
            counts.update(dict(zip(values.tolist(), found.tolist(), strict=True)))
            counts = counts if len(counts) <= MOST_CLASSES else None
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return LabelSummary(
        labelled=int(split.labelled(task).sum()),
        elements=labels.size,
        low=None if low == math.inf else low * (factor or 1.0),
        high=None if high == -math.inf else high * (factor or 1.0),
        missing=missing,
        infinite=infinite,
        classes=dict(sorted(counts.items())) if counts is not None else None,
    )
