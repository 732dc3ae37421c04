"""How often each class is among a task's labels, and the sentence about classes that are not equally frequent."""

# coverage: every branch

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOTICEABLE = 10.0
"""The ratio of the most frequent class to the rarest from which on training may miss the rarest."""
MOST_CLASSES = 1000
AT_ONCE = 1 << 16
"""Labels that are counted at once, each of which takes eight bytes then."""


class ClassCounts:
    """Adds up how often each class from 0 to `classes` - 1 is among labels, without what is ignored."""

    def __init__(self, classes: int, ignored: Collection[int] = ()) -> None:
        self._counts = np.zeros(classes, np.int64)
        self._ignored = [value for value in ignored if 0 <= value < classes]

    def add(self, labels: NDArray[np.integer[Any]]) -> None:
        """Count labels; those that are no class are left out."""
        count, flat = len(self._counts), labels.reshape(-1)
        for start in range(0, len(flat), AT_ONCE):
            some = flat[start : start + AT_ONCE]
            self._counts += np.bincount(some[(some >= 0) & (some < count)].astype(np.int64), minlength=count)

    def result(self) -> tuple[int, ...]:
        """Return how often each class is there; a class that is ignored never is."""
        found = self._counts.copy()
        found[self._ignored] = 0
        return tuple(found.tolist())


def imbalance_text(task: str, counts: Sequence[int], ignored: Collection[int] = ()) -> str | None:
    """Return a sentence about classes whose labels are much rarer than others, or absent; None where all are alike."""
    asked = {name: count for name, count in enumerate(counts) if name not in ignored}
    absent = [name for name, count in asked.items() if not count]
    there = {name: count for name, count in asked.items() if count}
    if not there:
        return None
    most, least = max(there, key=there.__getitem__), min(there, key=there.__getitem__)
    ratio, total = there[most] / there[least], sum(there.values())
    parts = []
    if ratio >= NOTICEABLE:
        parts.append(
            f"{ratio:,.0f} to 1: label {most} is {100 * there[most] / total:.3g}% of all, label {least} "
            f"{100 * there[least] / total:.2g}%; weights of classes in the loss make up for it"
        )
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        parts.append(f"no label is {absent[0]}{more} of {len(asked)} classes")
    return f"{task}: classes are unequal, {'; '.join(parts)}" if parts else None
