# ruff: noqa: N806  (T is the number of tasks)
"""Affinities as what they are worth in loss: each weighted by its task's loss, with a task's effect on itself.

An affinity is a share of a task's loss, and MAS's score a mean of such shares; what counts in the end is the sum of the
losses. The encoder of a group G steps along the sum of its tasks' gradients over √|G|. So to first order a step of
the group lowers the loss of task i by lr · L_i · Σ_{j in G} S[j→i] / √|G|, j = i included: that is the score.
"""

# coverage: every branch

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from broker_server.grouping.search import SplitImpossible, Values, check


def weighted_scores(tasks: Sequence[str], values: ArrayLike, losses: Mapping[str, float]) -> Values:
    """Return the score (2^T, T) of each task in each group, a group being a bit mask; 0 where it is not a member.

    `values` (T, T) are affinities i→j with those of tasks to themselves. Raises SplitImpossible, also for a loss that
    is missing or not finite.
    """
    array = check(tasks, values)
    if missing := [task for task in tasks if not np.isfinite(losses.get(task, np.nan))]:
        raise SplitImpossible(f"the merged model's loss of {missing[0]!r} was not measured")
    T = len(tasks)
    member = (np.arange(2**T)[:, None] >> np.arange(T)) & 1  # (2^T, T)
    size = np.maximum(member.sum(axis=1, keepdims=True), 1)  # (2^T, 1)
    weights = np.array([losses[task] for task in tasks])  # (T,)
    scores: Values = member * (member @ array) * weights / np.sqrt(size)
    return scores
