"""The gate before any claim about grouping: whether a setting can tell groupings apart at all.

Where tasks do not disturb one another, where models have learnt next to nothing, or where divisions differ by no more
than seeds do, the best, the worst and random groups end alike, whatever their losses suggest. So three conditions have
to be met: all-in-one loses to one-by-one by more than the interval of the difference; each task loses at most
LEARNT of what its best constant prediction loses; divisions spread more than seeds. What was not measured is not met.
"""

# coverage: every branch

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Literal

import msgspec

from broker_server.grouping.alternatives import Groups
from broker_server.grouping.statistics import Estimate, Unit

LEARNT = 0.9
"""A task's loss is well below a constant prediction's from this share of it down."""
CANNOT_TELL = "This setting cannot tell groupings apart"

ConditionName = Literal["conflict", "learnt", "spread"]
Spread = tuple[float, float]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition: whether it is met, None where it was not measured, and what was found, as words."""

    name: ConditionName
    met: bool | None
    finding: str


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions in their order."""

    conditions: tuple[Condition, ...]

    @property
    def is_open(self) -> bool:
        """Whether every condition was measured and is met."""
        return all(each.met for each in self.conditions)

    @property
    def sentence(self) -> str:
        """The verdict, with the findings of the conditions that are not met."""
        if self.is_open:
            return f"This setting can tell groupings apart: {'; '.join(each.finding for each in self.conditions)}."
        return f"{CANNOT_TELL}: {'; '.join(each.finding for each in self.conditions if not each.met)}."


def gate(
    conflict: Estimate | None, learnt: Mapping[str, float] | None, spread: Spread | None, *, over: str = "seeds"
) -> Gate:
    """Return the gate of a setting; None for what was not measured.

    `conflict` is the total loss of all-in-one less one-by-one's; `learnt` is each task's loss as a share of its
    constant prediction's; `spread` is that of `spread`. `over` says what the intervals are over.
    """
    return Gate(conditions=(_conflict(conflict, over), _learnt(learnt), _spread(spread, over)))


def _conflict(found: Estimate | None, over: str) -> Condition:
    if found is None:
        return Condition(name="conflict", met=None, finding="all-in-one and one-by-one were not both measured")
    if found.half_width is None:
        return Condition(
            name="conflict",
            met=None,
            finding=f"all-in-one loses {found.mean:+.4f} to one-by-one, without an interval over {over}",
        )
    met = found.mean - found.half_width > 0
    loss = f"{found.mean:+.4f} ± {found.half_width:.4f}"
    words = "" if met else ", not more than the interval"
    return Condition(
        name="conflict",
        met=met,
        finding=f"all-in-one loses {loss} to one-by-one{words}",
    )


def _learnt(found: Mapping[str, float] | None) -> Condition:
    if not found:
        return Condition(name="learnt", met=None, finding="the losses of constant predictions were not measured")
    task = max(found, key=found.__getitem__)
    met = found[task] <= LEARNT
    finding = f"{task} loses {100 * found[task]:.0f} % of what a constant prediction does"
    return Condition(name="learnt", met=met, finding=f"{finding}, the most of all tasks" if met else finding)


def _spread(found: Spread | None, over: str) -> Condition:
    if found is None:
        return Condition(
            name="spread", met=None, finding=f"no two divisions into groups were measured over two {over} or more"
        )
    between, within = found
    met = between > within
    return Condition(
        name="spread",
        met=met,
        finding=f"divisions spread by {between:.4f}, {'more' if met else 'no more'} than {over} ({within:.4f})",
    )


def spread(losses: Mapping[Unit, Mapping[Groups, float]]) -> Spread | None:
    """Return the standard deviation between divisions and that of one division over seeds, from losses by seed.

    Divisions count that were measured with every seed; each seed's losses are taken from their mean, because seeds
    differ in what they have in common. None with fewer than two seeds or two such divisions.
    """
    common = sorted(set.intersection(*(set(found) for found in losses.values()))) if losses else []
    if len(losses) < 2 or len(common) < 2:
        return None
    level = {seed: mean(found[each] for each in common) for seed, found in losses.items()}
    apart = {each: [found[each] - level[seed] for seed, found in losses.items()] for each in common}
    within = mean(stdev(values) ** 2 for values in apart.values()) ** 0.5
    return stdev(mean(values) for values in apart.values()), within
