# ruff: noqa: N806  (T is the number of tasks)
"""Groups from the losses of all single tasks and all pairs: what a group of more would lose is estimated.

The loss of task i in a group G of several is taken to be the mean over the others j in G of the loss of i in the pair
{i, j}; the loss of i alone was measured. A task that several groups hold is served by the one where it loses least.
The search is the one of split.py, with losses in place of scores, and as exact. That the estimate holds for groups of
three and more is an assumption: what such a group really loses is seen when it has been trained.

Source: HOA, higher-order approximation (Standley et al., ICML 2020, section 5).
"""

# coverage: every branch

from collections.abc import Mapping, Sequence

import numpy as np

from broker_server.grouping.search import (
    Mode,
    SplitImpossible,
    TaskSplit,
    Values,
    check_tasks,
    score_in_table,
    score_table,
)
from broker_server.grouping.search import search_table as search

Pairs = Mapping[tuple[str, str], tuple[float, float]]
"""By two tasks, in either order: the losses of the first and of the second when they were trained together."""


def choose(
    tasks: Sequence[str], singles: Mapping[str, float], pairs: Pairs, groups: int, mode: Mode = "overlap"
) -> TaskSplit:
    """Return the groups with the least estimated total loss; the split's score is minus the mean over tasks.

    `overlap` makes at most `groups` groups, in which a task may be several times; a group may be a single task. The
    other modes are those of split.py, each task in one group. Raises SplitImpossible, also for a loss that is missing
    or not finite.
    """
    return search(tasks, loss_scores(tasks, singles, pairs), groups, mode)


def estimated_loss(
    tasks: Sequence[str], singles: Mapping[str, float], pairs: Pairs, groups: Sequence[Sequence[str]]
) -> float:
    """Return the estimated total loss of given groups, each task in the best that holds it. Raises SplitImpossible."""
    return -len(tasks) * score_in_table(tasks, loss_scores(tasks, singles, pairs), groups)


def loss_scores(tasks: Sequence[str], singles: Mapping[str, float], pairs: Pairs) -> Values:
    """Return minus the estimated loss (2^T, T) of each task in each group, a group being a bit mask.

    Raises SplitImpossible.
    """
    check_tasks(tasks)
    T = len(tasks)
    beside = np.zeros((T, T))  # [j][i]: minus the loss of i beside j
    for i, task in enumerate(tasks):
        for j, other in enumerate(tasks[:i]):
            beside[j, i], beside[i, j] = (-loss for loss in _pair(task, other, pairs))
    if missing := [task for task in tasks if task not in singles]:
        raise SplitImpossible(f"the loss of {missing[0]!r} alone was not measured")
    alone = -np.array([singles[task] for task in tasks], np.float64)
    odd = ~np.isfinite(alone) | ~np.isfinite(beside).all(axis=0)  # (T,)
    if odd.any():
        raise SplitImpossible(f"a loss of {tasks[int(odd.argmax())]!r} is not a finite number")
    return score_table(beside, alone)


def _pair(task: str, other: str, pairs: Pairs) -> tuple[float, float]:
    """Return the losses of two tasks together, in this order."""
    forth, back = pairs.get((task, other)), pairs.get((other, task))
    if forth is not None and back is not None:
        raise SplitImpossible(f"the losses of {other!r} with {task!r} are there twice")
    if forth is not None:
        return forth
    if back is None:
        raise SplitImpossible(f"the losses of {other!r} with {task!r} were not measured")
    return back[1], back[0]
