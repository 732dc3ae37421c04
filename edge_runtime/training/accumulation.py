"""A batch in micro-batches, whose gradients add up to the batch's.

A loss is the mean over its labelled samples. So with m_i labels of task i in the batch, of which m_ic are in
micro-batch c, the batch's loss is Σ_c (m_ic / m_i) · L_ic, and its gradient likewise. That is exact, but for rounding,
for a loss that is a mean over samples and a model whose samples do not meet. Batch normalisation sees the micro-batch
alone, and its running statistics move once for each; a loss over masked pixels is the mean of the micro-batches' means.
"""

# coverage: every branch

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Batch, Pass
from edge_runtime.training.model import Labelled, Model, Target, Targets

Row = NDArray[np.float64]
Part = tuple[Batch, Targets, Row]
Heads = Callable[[int, Pass, Targets, Row], Callable[[], None]]
"""Runs the heads of a part, by its number, pass, targets and shares, and sends it back; the result ends that."""


def micro_batches(x: Batch, targets: Targets, size: int) -> Iterator[tuple[Batch, Mapping[str, Target], Row]]:
    """Consecutive parts of at most `size` samples, with each task's share of its labels that is in the part, (T,)."""
    labelled = _counts(targets, len(x))
    for start in range(0, len(x), size):
        part = slice(start, min(start + size, len(x)))
        some = {task: _some(target, part) for task, target in targets.items()}
        share = _counts(some, part.stop - part.start) / np.maximum(labelled, 1)
        yield x[part], some, share


def add_up(model: Model, place: tuple[int, ...], parts: Iterable[Part], heads: Heads) -> None:
    """Run a batch part by part; the sum of the parts' gradients is in `model.gradient` afterwards.

    As many parts as the model's encoder wants are begun before the first one's heads run, and as many are on their way
    back. The gradients are added in the order of the parts in any case, so the sum is the same bit for bit. What is
    random is drawn for the `place` of the batch and the part's number.
    """
    summed = np.zeros_like(model.gradient)
    at = model.heads_at
    trunk = (slice(0, at.start), slice(at.stop, len(summed)))
    begun: deque[tuple[int, Pass, Targets, Row]] = deque()
    returning: deque[tuple[int, Callable[[], None]]] = deque()

    def seed(number: int) -> None:
        model.reseed(*place, *((number,) if number else ()))

    def run_heads() -> None:
        number, done, targets, share = begun.popleft()
        seed(number)
        returning.append((number, heads(number, done, targets, share)))
        summed[at] += model.gradient[at]

    def take_back() -> None:
        number, finish = returning.popleft()
        seed(number)
        finish()
        for where in trunk:
            summed[where] += model.gradient[where]

    for number, (x, targets, share) in enumerate(parts):
        seed(number)
        begun.append((number, model.forward(x), targets, share))
        if len(begun) == model.in_flight:
            run_heads()
        if len(returning) == model.in_flight:
            take_back()
    while begun:
        run_heads()
    while returning:
        take_back()
    model.gradient[:] = summed


def _some(target: Target, part: slice) -> Target:
    if not isinstance(target, Labelled):
        return target[part]
    inside = (target.rows >= part.start) & (target.rows < part.stop)
    return Labelled(target.rows[inside] - part.start, target.target[inside])


def _counts(targets: Mapping[str, Target], samples: int) -> Row:
    counts = (len(target.rows) if isinstance(target, Labelled) else samples for target in targets.values())
    return np.array(list(counts), np.float64)
