"""What a federation has measured of its choice of groups: how it stands among others, and whether it could tell.

Groups that were measured beside one another, each trained in the same way, are what other divisions are known from:
all of them where every group was trained, else those that were tried for short rounds before the split. Devices take
the place that seeds have in a comparison. Without either nothing is known of other divisions, and the report says so.
"""

# coverage: every branch

from collections.abc import Iterable, Mapping, Sequence

from broker_server.grouping.alternatives import Groups
from broker_server.grouping.gate import Gate, gate, spread
from broker_server.grouping.quality import (
    ChoiceQuality,
    GroupLosses,
    division_score,
    known_divisions,
    ordered,
    quality,
)
from broker_server.grouping.search import TaskSplit
from broker_server.grouping.statistics import difference
from broker_server.rounds.losses import weighted_losses
from broker_server.strategies.exhaustive import SURVEY
from broker_server.strategies.planner import TRIED, Round
from edge_runtime.wire.messages import Evaluation

Measured = Mapping[tuple[str, ...], Sequence[tuple[str, Evaluation]]]
"""By group: the evaluations of devices, by name."""


def beside(rounds: Iterable[tuple[Round, Mapping[str, object]]]) -> Measured:
    """Return the evaluations of the groups that were measured beside one another; none where there are no such."""
    found: dict[str, dict[tuple[str, ...], list[tuple[str, Evaluation]]]] = {SURVEY: {}, TRIED: {}}
    for played, results in rounds:
        if played.phase in found:
            evaluations = [(name, each) for name, each in sorted(results.items()) if isinstance(each, Evaluation)]
            found[played.phase][tuple(sorted(played.tasks))] = evaluations
    return found[SURVEY] or found[TRIED]


def choice(split: TaskSplit, tasks: Sequence[str], measured: Measured) -> ChoiceQuality | None:
    """Return the quality of a split among the divisions that are known; None for fewer than two, or without its own."""
    means = {
        group: weighted_losses((each.loss, each.examples) for _, each in found) for group, found in measured.items()
    }
    known = known_divisions(_complete(means), tasks, len(split.groups))
    chosen = ordered(split.groups)
    if len(known) < 2 or chosen not in known:
        return None
    scores = split.group_scores
    scored = {} if scores is None else {each: division_score(tasks, scores, each) for each in known}
    return quality(known, chosen, scored)


def device_gate(groups: int, tasks: Sequence[str], measured: Measured) -> Gate:
    """Return the gate over devices of a federation that was split into so many groups."""
    by_device: dict[str, dict[tuple[str, ...], Mapping[str, float]]] = {}
    for group, found in measured.items():
        for device, each in found:
            by_device.setdefault(device, {})[group] = each.loss
    losses = {device: _complete(found) for device, found in by_device.items()}
    merged, alone = (
        {device: _least(known_divisions(found, tasks, number)) for device, found in losses.items()}
        for number in (1, len(tasks))
    )
    divisions = {device: known_divisions(found, tasks, groups) for device, found in losses.items()}
    return gate(
        difference(merged, alone), None, spread({d: found for d, found in divisions.items() if found}), over="devices"
    )


def _complete(losses: GroupLosses) -> GroupLosses:
    """Return the groups of which every task was measured."""
    return {group: found for group, found in losses.items() if found.keys() == set(group)}


def _least(totals: Mapping[Groups, float]) -> float | None:
    return min(totals.values(), default=None)
