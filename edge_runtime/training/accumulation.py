"""Gradient accumulation: a batch runs in micro-batches, whose gradients add up to the batch's.

A loss is the mean over its labelled samples. With m_i labels of task i in the batch and m_ic in micro-batch c, the
batch's loss is Σ_c (m_ic / m_i) · L_ic, and so is its gradient. This is exact, except for rounding, if the loss is a
mean over samples and no layer mixes samples. Batch normalisation sees one micro-batch at a time, and its running
statistics move once for each. A loss over masked pixels becomes the mean of the micro-batches' means.
"""

# coverage: every branch

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Inputs, Pass, batch_size
from edge_runtime.training.model import Labelled, Model, Target, Targets

Row = NDArray[np.float64]
Part = tuple[Inputs, Targets, Row]
Heads = Callable[[int, Pass, Targets, Row], Callable[[], None]]
"""Runs the heads of a part, from its number, pass, targets and shares, and starts its backward pass.

The returned function completes the backward pass.
"""


def micro_batches(x: Inputs, targets: Targets, size: int) -> Iterator[tuple[Inputs, Mapping[str, Target], Row]]:
    """Yield consecutive parts of at most `size` samples, each with the tasks' shares of labels in it, (T,)."""
    count = batch_size(x)
    labelled = _counts(targets, count)
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        some = {task: _rows_in(target, part) for task, target in targets.items()}
        share = _counts(some, part.stop - part.start) / np.maximum(labelled, 1)
        yield {name: array[part] for name, array in x.items()}, some, share


def accumulate_gradients(model: Model, place: tuple[int, ...], parts: Iterable[Part], heads: Heads) -> None:
    """Run a batch part by part, and leave the sum of the parts' gradients in `model.gradient`.

    Up to `model.in_flight` parts are in their forward passes, and as many in their backward passes. The gradients are
    added in the order of the parts, so the sum is the same bit for bit. The seed of a part follows from the `place` of
    the batch and the part's number.
    """
    summed = np.zeros_like(model.gradient)
    at = model.heads_range
    trunk = (slice(0, at.start), slice(at.stop, len(summed)))
    forward: deque[tuple[int, Pass, Targets, Row]] = deque()
    backward: deque[tuple[int, Callable[[], None]]] = deque()

    def seed(number: int) -> None:
        model.reseed(*place, *((number,) if number else ()))

    def run_next_heads() -> None:
        number, done, targets, share = forward.popleft()
        seed(number)
        backward.append((number, heads(number, done, targets, share)))
        summed[at] += model.gradient[at]

    def complete_next() -> None:
        number, finish = backward.popleft()
        seed(number)
        finish()
        for where in trunk:
            summed[where] += model.gradient[where]

    for number, (x, targets, share) in enumerate(parts):
        seed(number)
        forward.append((number, model.forward(x), targets, share))
        if len(forward) == model.in_flight:
            run_next_heads()
        if len(backward) == model.in_flight:
            complete_next()
    while forward:
        run_next_heads()
    while backward:
        complete_next()
    model.gradient[:] = summed


def _rows_in(target: Target, part: slice) -> Target:
    if not isinstance(target, Labelled):
        return target[part]
    inside = (target.rows >= part.start) & (target.rows < part.stop)
    return Labelled(target.rows[inside] - part.start, target.target[inside])


def _counts(targets: Mapping[str, Target], samples: int) -> Row:
    counts = (len(target.rows) if isinstance(target, Labelled) else samples for target in targets.values())
    return np.array(list(counts), np.float64)
