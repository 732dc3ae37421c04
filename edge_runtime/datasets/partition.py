"""The partition of images, or of pixels, into the training, the validation and the test set.

No function here reads a file; each depends on its arguments and a seed alone. Letters: H and W pixels of a view, S the
side of a crop.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from devices.cli.run import UsageError
from edge_runtime.datasets.dataset import SPLITS, SplitName

Key = TypeVar("Key", bound=Hashable)
Labels = NDArray[np.uint8]
"""For each pixel, the index of its set in SPLITS."""


class PartitionImpossible(UsageError):
    """There are too few views, or a view has too few pixels, for the sets that the settings ask for."""


@dataclass(frozen=True, kw_only=True)
class Fractions:
    """The shares of the validation and of the test set; the rest is for training."""

    val: float = 0.15
    test: float = 0.15

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise PartitionImpossible(
                f"the shares of validation and test are 0 or more and leave some to train on, not {self.val} and "
                f"{self.test}"
            )

    def counts(self, total: int, what: str) -> tuple[int, int, int]:
        """Return the parts of `total` for each of SPLITS: at least one for each that has a share.

        Raises PartitionImpossible if there are not enough; `what` names them in the message.
        """
        val = max(1, round(self.val * total)) if self.val else 0
        test = max(1, round(self.test * total)) if self.test else 0
        if total - val - test < 1:
            raise PartitionImpossible(
                f"{what} are too few ({total}) for a training set beside a share of {self.val} for validation and "
                f"{self.test} for test"
            )
        return total - val - test, val, test


def split_keys(keys: Sequence[Key], fractions: Fractions, what: str, rng: np.random.Generator) -> dict[Key, SplitName]:
    """Return the set of each key, by a random permutation: each key is in exactly one set.

    Raises PartitionImpossible if there are too few; `what` names them in the message.
    """
    counts = fractions.counts(len(keys), what)
    names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return {keys[index]: name for index, name in zip(rng.permutation(len(keys)), names, strict=True)}


def regions(shape: tuple[int, int], side: int, fractions: Fractions, what: str, rng: np.random.Generator) -> Labels:
    """Return the set of each pixel (H, W) of a view, in rectangles that crops of `side` pixels fit into.

    The rectangles are about two crops wide where the view has room for enough of them, else at least one. Raises
    PartitionImpossible where it has room for fewer than there are sets.
    """
    height, width = shape
    wide = 2 * side if (height // (2 * side)) * (width // (2 * side)) >= 9 else side
    rows, columns = height // wide, width // wide
    counts = fractions.counts(rows * columns, f"the places for crops of {side} pixels in {what}")
    sets = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), counts)
    cells = rng.permutation(sets).reshape(rows, columns)
    return cells[np.arange(height)[:, None] * rows // height, np.arange(width)[None] * columns // width]


def corners(labels: Labels, which: int, side: int) -> NDArray[np.intp]:
    """Return the upper left pixels (P, 2), row and column, of all crops that lie within one set."""
    belongs = np.pad(labels == which, ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)
    inside = belongs[side:, side:] - belongs[:-side, side:] - belongs[side:, :-side] + belongs[:-side, :-side]
    return np.argwhere(inside == side * side)


def draw_corners(
    labels: Labels, side: int, counts: Sequence[int], what: str, rng: np.random.Generator
) -> dict[SplitName, NDArray[np.intp]]:
    """Return different crops (count, 2) for each set with a count, by row and column of the upper left pixel.

    Raises PartitionImpossible where a set has room for fewer.
    """
    drawn: dict[SplitName, NDArray[np.intp]] = {}
    for which, (name, count) in enumerate(zip(SPLITS, counts, strict=True)):
        if not count:
            continue
        places = corners(labels, which, side)
        if len(places) < count:
            raise PartitionImpossible(
                f"{what} has room for {len(places)} different crops of {side} pixels in {name}, not for {count}"
            )
        drawn[name] = places[np.sort(rng.choice(len(places), count, replace=False))]
    return drawn
