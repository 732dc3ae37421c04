# ruff: noqa: N803, N806  (T is the number of tasks)
"""The best way to divide tasks into groups, from their pairwise affinities: exact, for up to 16 tasks.

values[i][j] is i→j: the effect of a step on task i upon the loss of task j, larger is better.

Score of a task in a group of several: the mean of what comes in from the others. Score of a task alone: the mean of
all that goes out of it and comes into it, its self-affinity. Score of a division: the mean over all tasks. So the
all-in-one division and the division into single tasks always score the same.

How it works. Let f(B) be the summed score of the tasks of block B. The best division of a set of tasks into k blocks
is the best over all blocks B that hold the set's first task of f(B) plus the best division of the rest into k - 1.
That is a table over all subsets of T tasks and all their subsets, 3^T steps, where counting divisions would take more
than exponentially many. With overlap a task counts in its best group only; the tasks that count in group G are some
block B ⊆ G, and f(B) becomes the best over all G ⊇ B with two or more members.

The search asks nothing of affinities but the score of each task in each group: `search_table` takes these, whatever
they were made of.

Sources: MAS (Zhuang et al., ICCV 2023, section 3.3); TAG (Fifty et al., NeurIPS 2021) for overlapping groups.
"""

# coverage: every branch

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_SPLIT_TASKS = 16
MOST_SCORED = 10
"""Of so many tasks the scores of all groups are kept with a split."""
TIE = 1e-12
"""Scores closer than this are equal: sums in another order differ by as much."""

Mode = Literal["exactly", "at_most", "overlap"]
Values = NDArray[np.float64]


class SplitImpossible(ValueError):
    """There is no such split: the affinities are unusable, or the groups asked for cannot be made."""


@dataclass(frozen=True, kw_only=True)
class TaskSplit:
    """A division of tasks into groups and its score. Groups follow the order of the tasks given."""

    groups: tuple[tuple[str, ...], ...]
    score: float
    mode: Mode
    group_scores: tuple[float, ...] | None = None
    """The summed score of the tasks of each group, (2^T,), a group being a bit mask; of MOST_SCORED tasks or fewer."""

    def among(self, table: Values) -> "TaskSplit":
        """Return it with the scores of all groups, from those of each task in each group, (2^T, T)."""
        if table.shape[1] > MOST_SCORED:
            return self
        return replace(self, group_scores=tuple(table.sum(axis=1).tolist()))


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise SplitImpossible for no tasks, too many, or one that is there twice."""
    if not tasks:
        raise SplitImpossible("there are no tasks to split")
    if len(tasks) > MAX_SPLIT_TASKS:
        raise SplitImpossible(f"{len(tasks)} tasks are more than the {MAX_SPLIT_TASKS} that an exact split can search")
    if twice := sorted({task for task in tasks if list(tasks).count(task) > 1}):
        raise SplitImpossible(f"task {twice[0]!r} is there twice")


def check(tasks: Sequence[str], values: ArrayLike) -> Values:
    """Return the affinities as a (T, T) float64 array. Raises SplitImpossible if they are not that, or not finite."""
    check_tasks(tasks)
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as exc:
        raise SplitImpossible("the affinities are not a square table of numbers") from exc
    if array.shape != (len(tasks), len(tasks)):
        raise SplitImpossible(f"{len(tasks)} tasks need {len(tasks)} by as many affinities, not {array.shape}")
    if not np.isfinite(array).all():
        i, j = np.argwhere(~np.isfinite(array))[0]
        raise SplitImpossible(f"the affinity of {tasks[i]!r} to {tasks[j]!r} is {array[i, j]}, not a finite number")
    return array


def self_affinity(values: Values) -> Values:
    """Return the score (T,) of each task alone: the mean of all that goes out and comes in; 0 for a single task."""
    others = values.copy()  # (T, T)
    np.fill_diagonal(others, 0.0)
    mean: Values = (others.sum(axis=0) + others.sum(axis=1)) / max(1, 2 * (len(values) - 1))
    return mean


def task_scores(values: Values) -> Values:
    """Return the score (2^T, T) of each task in each group, a group being a bit mask; 0 where it is not a member."""
    return score_table(values, self_affinity(values))


def score_table(incoming: Values, alone: Values) -> Values:
    """Return the scores (2^T, T) of tasks in groups, from those of a task beside one other, (T, T), and alone, (T,)."""
    T = len(incoming)
    member = (np.arange(2**T)[:, None] >> np.arange(T)) & 1  # (2^T, T)
    others = incoming.copy()
    np.fill_diagonal(others, 0.0)
    size = member.sum(axis=1, keepdims=True)  # (2^T, 1)
    scores: Values = member * (member @ others) / np.maximum(size - 1, 1)
    single = 1 << np.arange(T)
    scores[single, np.arange(T)] = alone
    return scores


def score(tasks: Sequence[str], values: ArrayLike, groups: Sequence[Sequence[str]]) -> float:
    """Return the score of a given division; a task in several groups counts in its best. Raises SplitImpossible."""
    return score_in_table(tasks, task_scores(check(tasks, values)), groups)


def score_in_table(tasks: Sequence[str], table: Values, groups: Sequence[Sequence[str]]) -> float:
    """Return the score of a given division by the scores of each task in each group, (2^T, T)."""
    masks = [group_mask(tasks, group) for group in groups]
    best = []
    for i, task in enumerate(tasks):
        mine = [float(table[mask, i]) for mask in masks if mask >> i & 1]
        if not mine:
            raise SplitImpossible(f"task {task!r} is in no group")
        best.append(max(mine))
    return float(np.mean(best))


def task_score(tasks: Sequence[str], values: ArrayLike, group: Sequence[str], task: str) -> float:
    """Return the score of one task in one group. Raises SplitImpossible."""
    mask = sum(1 << _index(tasks, member) for member in set(group))
    return float(task_scores(check(tasks, values))[mask, _index(tasks, task)])


def search(tasks: Sequence[str], values: ArrayLike, groups: int, mode: Mode) -> TaskSplit:
    """Return the best split of `tasks` into `groups` groups. `values` is (T, T), i→j.

    `exactly` makes that many groups and `at_most` that many or fewer, each task in one; `overlap` makes that many or
    fewer, in which a task may be several times and no group is a single task. Where scores are equal the fewest
    groups win. Raises SplitImpossible.
    """
    return search_table(tasks, task_scores(check(tasks, values)), groups, mode, smallest=2)


def search_table(tasks: Sequence[str], table: Values, groups: int, mode: Mode, *, smallest: int = 1) -> TaskSplit:
    """Return the best split by the scores of each task in each group, (2^T, T), 0 where it is not a member.

    Overlapping groups have at least `smallest` members. Raises SplitImpossible.
    """
    T = len(tasks)
    if groups < 1:
        raise SplitImpossible(f"{groups} groups cannot be made: one is the least")
    if groups > T and mode == "exactly":
        raise SplitImpossible(f"{T} tasks cannot be split into exactly {groups} groups")
    most = min(groups, T)
    if mode == "overlap":
        block, group_of = _best_supersets(table, min(smallest, T))
    else:
        block, group_of = table.sum(axis=1), np.arange(2**T)
    best, choice = _divide(block, T, most)
    full = 2**T - 1
    if mode == "exactly":
        count = most
    else:
        count = 1
        for k in range(2, most + 1):
            if best[k, full] > best[count, full] + T * TIE:
                count = k
    masks, rest = [], full
    for k in range(count, 0, -1):
        taken = int(choice[k, rest])
        masks.append(int(group_of[taken]))
        rest ^= taken
    return TaskSplit(groups=in_order(tasks, dict.fromkeys(masks)), score=float(best[count, full]) / T, mode=mode)


def group_mask(tasks: Sequence[str], group: Sequence[str]) -> int:
    """Return a group as a bit mask over the tasks. Raises SplitImpossible for a task that is not one of them."""
    return sum(1 << _index(tasks, task) for task in set(group))


def in_order(tasks: Sequence[str], masks: Iterable[int]) -> tuple[tuple[str, ...], ...]:
    """Return groups given as bit masks, in the order of the tasks."""
    T = len(tasks)
    members = sorted(_members(mask, T) for mask in masks)
    return tuple(tuple(tasks[i] for i in group) for group in members)


def _index(tasks: Sequence[str], task: str) -> int:
    try:
        return list(tasks).index(task)
    except ValueError as exc:
        raise SplitImpossible(f"a group names {task!r}, which is not one of the tasks") from exc


def _members(mask: int, T: int) -> tuple[int, ...]:
    return tuple(i for i in range(T) if mask >> i & 1)


@lru_cache(maxsize=4)
def blocks(T: int) -> tuple[NDArray[np.int32], ...]:
    """Return for every set of tasks its blocks that hold its first task, smallest first."""
    result = [np.zeros(0, np.int32)]
    for mask in range(1, 2**T):
        first = mask & -mask
        parts = np.array([first], np.int32)
        for i in range(T):
            if (mask ^ first) >> i & 1:
                parts = np.concatenate([parts, parts | (1 << i)])
        result.append(parts)
    return tuple(result)


def _divide(block: Values, T: int, most: int) -> tuple[Values, NDArray[np.int64]]:
    """Return the best score (most + 1, 2^T) of each set in each number of blocks, and the block to take first."""
    best = np.full((most + 1, 2**T), -np.inf)
    choice = np.zeros((most + 1, 2**T), np.int64)
    best[0, 0] = 0.0
    for mask, parts in enumerate(blocks(T)):
        if not mask:
            continue
        totals = block[parts] + best[:most, mask ^ parts]  # (most, parts)
        winners = totals.argmax(axis=1)  # (most,)
        best[1:, mask] = totals[np.arange(most), winners]
        choice[1:, mask] = parts[winners]
    return best, choice


def _best_supersets(table: Values, smallest: int) -> tuple[Values, NDArray[np.int64]]:
    """Return the best score (2^T,) of each block inside a group of `smallest` or more members, and that group."""
    T = table.shape[1]
    every = np.arange(2**T)
    size = ((every[:, None] >> np.arange(T)) & 1).sum(axis=1)
    groups = every[size >= smallest]
    groups = groups[np.argsort(size[groups], kind="stable")]  # the smallest group wins a tie
    best = np.full(2**T, -np.inf)
    group_of = np.zeros(2**T, np.int64)
    for mask in range(1, 2**T):
        inside = groups[groups & mask == mask]
        totals = table[inside][:, _members(mask, T)].sum(axis=1)
        winner = int(totals.argmax())
        best[mask], group_of[mask] = totals[winner], inside[winner]
    return best, group_of
