"""Losses and metrics of several devices as one: means weighted by examples."""

# coverage: every branch

from collections.abc import Iterable, Mapping


def weighted_losses(reports: Iterable[tuple[Mapping[str, float], Mapping[str, int]]]) -> dict[str, float]:
    """Return the mean of devices' losses, or metrics, by task, weighted by examples. Unmeasured tasks are left out."""
    total: dict[str, float] = {}
    weight: dict[str, int] = {}
    for losses, examples in reports:
        for task, loss in losses.items():
            if number := examples.get(task, 0):
                total[task] = total.get(task, 0.0) + loss * number
                weight[task] = weight.get(task, 0) + number
    return {task: total[task] / weight[task] for task in sorted(total)}
