"""A batch in micro-batches, whose gradients add up to the batch's.

A loss is the mean over its labelled samples. So with m_i labels of task i in the batch, of which m_ic are in
micro-batch c, the batch's loss is Σ_c (m_ic / m_i) · L_ic, and its gradient likewise. That is exact, but for rounding,
for a loss that is a mean over samples and a model whose samples do not meet. Batch normalisation sees the micro-batch
alone, and its running statistics move once for each; a loss over masked pixels is the mean of the micro-batches' means.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Batch
from edge_runtime.training.model import Labelled, Target, Targets

Row = NDArray[np.float64]


def micro_batches(x: Batch, targets: Targets, size: int) -> Iterator[tuple[Batch, Mapping[str, Target], Row]]:
    """Consecutive parts of at most `size` samples, with each task's share of its labels that is in the part, (T,)."""
    labelled = _counts(targets, len(x))
    for start in range(0, len(x), size):
        part = slice(start, min(start + size, len(x)))
        some = {task: _some(target, part) for task, target in targets.items()}
        share = _counts(some, part.stop - part.start) / np.maximum(labelled, 1)
        yield x[part], some, share


def _some(target: Target, part: slice) -> Target:
    if not isinstance(target, Labelled):
        return target[part]
    inside = (target.rows >= part.start) & (target.rows < part.stop)
    return Labelled(target.rows[inside] - part.start, target.target[inside])


def _counts(targets: Mapping[str, Target], samples: int) -> Row:
    counts = (len(target.rows) if isinstance(target, Labelled) else samples for target in targets.values())
    return np.array(list(counts), np.float64)
