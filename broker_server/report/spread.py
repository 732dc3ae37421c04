"""How devices differ: a task's result on each of them, the mean, the worst and the bottom decile.

Methods that leave something to each device are judged by how the least well served fare, not by the mean alone. Every
device counts once here, however many examples it has.
"""

# coverage: every branch

from collections.abc import Mapping

import msgspec

from edge_runtime.wire.metrics import METRICS, MetricName


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A task's metric over the devices, or its loss where it has none."""

    metric: MetricName | None
    """None for the loss."""
    by_device: dict[str, float]
    mean: float
    worst: float
    bottom_decile: float
    """The best result of the worst tenth of the devices, one device at least: of up to ten devices the worst."""

    @property
    def title(self) -> str:
        """What was measured, with an arrow that points to where it is better."""
        better = self.metric is not None and METRICS[self.metric].higher_is_better
        return f"{'loss' if self.metric is None else METRICS[self.metric].title} {'↑' if better else '↓'}"


def spread(by_device: Mapping[str, float], metric: MetricName | None) -> Spread:
    """Return how a task's results by device are spread; there is one at least."""
    better_high = metric is not None and METRICS[metric].higher_is_better
    ranked = sorted(by_device.values(), reverse=not better_high)  # the worst comes first
    tenth = -(-len(ranked) // 10)
    return Spread(
        metric=metric,
        by_device=dict(sorted(by_device.items())),
        mean=sum(ranked) / len(ranked),
        worst=ranked[0],
        bottom_decile=ranked[tenth - 1],
    )
