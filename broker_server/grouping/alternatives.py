# ruff: noqa: N803  (T is the number of tasks)
"""Other divisions of tasks into groups than the best one of split.py: step by step, the worst, and a random one.

Scores are those of split.py over all tasks, so that divisions compare. Dividing step by step (MAS, Zhuang et al., ICCV
2023, section 4: hierarchical splitting) starts from all tasks in one group and halves, again and again, the group that
gains most by it: a federation can do one step, train, measure again and do the next. The worst division and random
ones show what a good one is worth.
"""

# coverage: every branch

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from broker_server.grouping.search import (
    TIE,
    SplitImpossible,
    TaskSplit,
    Values,
    blocks,
    check,
    check_tasks,
    group_mask,
    in_order,
    score,
    search_table,
    task_scores,
)

Groups = tuple[tuple[str, ...], ...]
MOST_DIVISIONS = 50_000
"""Of more, those that score best are not picked one by one."""


def divided(tasks: Sequence[str], values: ArrayLike, groups: Sequence[Sequence[str]]) -> TaskSplit:
    """Return the division `groups` with one group halved: the one that gains most, or loses least, by its best halves.

    `values` (T, T) are the affinities i→j of all tasks. Of equals the first group is taken. Raises SplitImpossible,
    also if `groups` is no division, or every group is a single task.
    """
    array = check(tasks, values)
    masks = [group_mask(tasks, group) for group in groups]
    if sum(masks) != 2 ** len(tasks) - 1 or sum(map(int.bit_count, masks)) != len(tasks) or 0 in masks:
        raise SplitImpossible("the groups are no division of the tasks: each task has to be in one of them")
    block = task_scores(array).sum(axis=1)  # (2^T,)
    best: tuple[float, int, int] | None = None
    for mask in masks:
        halves = blocks(len(tasks))[mask][:-1]  # the last block is the group itself
        if not len(halves):
            continue
        gains = block[halves] + block[mask ^ halves] - block[mask]
        winner = int(gains.argmax())
        if best is None or gains[winner] > best[0] + TIE:
            best = float(gains[winner]), mask, int(halves[winner])
    if best is None:
        raise SplitImpossible("every group is a single task: nothing is left to divide")
    _, divided_mask, half = best
    found = in_order(tasks, [mask for mask in masks if mask != divided_mask] + [half, divided_mask ^ half])
    return TaskSplit(groups=found, score=score(tasks, array, found), mode="exactly")


def hierarchical(
    tasks: Sequence[str], values: ArrayLike, groups: int, mode: Literal["exactly", "at_most"] = "exactly"
) -> TaskSplit:
    """Divide step by step into `groups` groups; `at_most` stops where no step gains. Raises SplitImpossible."""
    array = check(tasks, values)
    if not 1 <= groups <= len(tasks):
        raise SplitImpossible(f"{len(tasks)} tasks cannot be divided step by step into {groups} groups")
    undivided = (tuple(tasks),)
    found = TaskSplit(groups=undivided, score=score(tasks, array, undivided), mode=mode)
    while len(found.groups) < groups:
        following = divided(tasks, array, found.groups)
        if mode == "at_most" and following.score <= found.score + TIE:
            break
        found = TaskSplit(groups=following.groups, score=following.score, mode=mode)
    return found


def worst(tasks: Sequence[str], values: ArrayLike, groups: int) -> TaskSplit:
    """Return the division into exactly `groups` groups with the lowest score. Raises SplitImpossible."""
    found = search_table(tasks, -task_scores(check(tasks, values)), groups, "exactly")
    return TaskSplit(groups=found.groups, score=-found.score, mode="exactly")


def random_groups(tasks: Sequence[str], groups: int, seed: int) -> Groups:
    """Return a random division into exactly `groups` groups, each as likely as any other. Raises SplitImpossible."""
    check_tasks(tasks)
    if not 1 <= groups <= len(tasks):
        raise SplitImpossible(f"{len(tasks)} tasks cannot be split into exactly {groups} groups")
    number = int(np.random.default_rng(seed).integers(count(len(tasks), groups)))
    return division(tasks, groups, number)


def best_divisions(tasks: Sequence[str], table: Values, groups: int, number: int) -> tuple[Groups, ...]:
    """Return the `number` divisions into exactly `groups` groups that score best, the best first.

    `table` is the score of each task in each group, (2^T, T). Raises SplitImpossible, also for more than
    MOST_DIVISIONS.
    """
    check_tasks(tasks)
    every = count(len(tasks), groups)
    if not 1 <= every <= MOST_DIVISIONS:
        raise SplitImpossible(
            f"{len(tasks)} tasks have {every} divisions into {groups} groups: 1 to {MOST_DIVISIONS} can be ranked"
        )
    block = table.sum(axis=1)  # (2^T,)
    found = [division(tasks, groups, place) for place in range(every)]
    scores = {each: float(sum(block[group_mask(tasks, group)] for group in each)) for each in found}
    return tuple(sorted(found, key=scores.__getitem__, reverse=True)[:number])


def count(T: int, groups: int) -> int:
    """Return Stirling's number of the second kind: the divisions of T tasks into exactly `groups` groups."""
    row = [1] + [0] * groups  # of no tasks, by the number of groups
    for _ in range(T):
        row = [0] + [k * row[k] + row[k - 1] for k in range(1, groups + 1)]
    return row[groups]


def division(tasks: Sequence[str], groups: int, number: int) -> Groups:
    """Return the division into exactly `groups` groups with a number from 0 to count(T, groups) - 1, each another one.

    The last task is alone in as many as there are divisions of the rest into one group fewer; in the others it joins
    one of the rest's groups.
    """
    if not tasks:
        return ()
    *rest, last = tasks
    alone = count(len(rest), groups - 1)
    if number < alone:
        return (*division(rest, groups - 1, number), (last,))
    which, number = divmod(number - alone, count(len(rest), groups))
    found = division(rest, groups, number)
    return (*found[:which], (*found[which], last), *found[which + 1 :])
