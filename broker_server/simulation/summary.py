"""The result of a simulated run: loss, time, energy and bytes, each measured or modelled by a stated rule."""

import msgspec

from broker_server.report.build import MetricMean, Report
from broker_server.report.spread import Spread
from broker_server.rounds.journal import FederationJournal
from broker_server.simulation.run_cache import computed_s
from broker_server.strategies.exhaustive import SURVEY
from broker_server.strategies.planner import Phase

TOTAL = "total"
"""Among losses by task, the sum of all."""


class LastSplit(msgspec.Struct, frozen=True, kw_only=True):
    """What tells a run's last groups from those of other runs that trained other groups in the same way."""

    origin: str
    """The digest of the weights that its groups started from, and the rounds of their schedule."""
    losses: dict[str, dict[str, float]]
    """By group, each task's test loss at the end: of the groups, and of all others that were trained beside them."""
    group_scores: tuple[float, ...] | None
    """By which the groups were chosen, where they were searched: see TaskSplit."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Times and joules are of training alone, without the measuring rounds; None was not measured.

    `compute_s` are CPU seconds on one core of the simulating machine, measured, over all devices; `critical_path_s` the
    slowest device's of each round. `simulated_s` and `simulated_j` follow from the rules of the experiment's boards.
    """

    method: str
    seed: int
    strategy: str
    baseline: str | None = None
    """The experiment's, where the method is one."""
    test_loss: dict[str, float] | None
    """By task, and `total`."""
    test_metric: dict[str, MetricMean] | None = None
    """By task, of the weights of `test_loss`; None where nothing was measured."""
    groups: tuple[tuple[str, ...], ...]
    """Of the last phase of training."""
    rounds: int
    compute_s: float | None
    critical_path_s: float | None
    simulated_s: float
    simulated_j: float | None
    bytes_up: int | None
    bytes_down: int | None
    spread: dict[str, Spread] = {}
    """By task, at the end: how it differs between devices."""
    last_split: LastSplit | None = None
    """None where the last groups started from the bundle's weights, or none was measured on test data."""


def summarise(
    method: str, seed: int, report: Report, journal: FederationJournal, baseline: str | None = None
) -> Summary:
    """Return the summary of a finished run."""
    rows = [row for row in journal.rounds() if row.closed_s is not None and row.round.work == "train"]
    facts = [journal.facts_of(row) for row in rows]
    computed = [computed_s(journal, row) for row in rows]
    missing = any(not each.results.keys() <= seconds.keys() for each, seconds in zip(facts, computed, strict=True))
    trained = [phase for phase, _ in journal.phases() if phase.work == "train"]
    stage = next((stage for stage in ("end", "merged") if report.test_loss.get(stage) is not None), None)
    energies = [energy.energy_j for each in facts for energy in each.energy.values()]
    ups, downs = [row.bytes_up for row in rows], [row.bytes_down for row in rows]
    return Summary(
        method=method,
        seed=seed,
        strategy=report.strategy,
        baseline=baseline,
        test_loss=None if stage is None else report.test_loss[stage],
        test_metric=None if stage is None else report.test_metrics.get(stage),
        groups=trained[-1].groups,
        rounds=len(rows),
        compute_s=None if missing else sum(sum(seconds.values()) for seconds in computed),
        critical_path_s=None if missing else sum(max(seconds.values()) for seconds in computed),
        simulated_s=sum((row.closed_s or row.started_s) - row.started_s for row in rows),
        simulated_j=None if None in energies else sum(energy for energy in energies if energy is not None),
        bytes_up=_sum(ups),
        bytes_down=_sum(downs),
        spread=report.spread,
        last_split=_last_split(trained[-1], report, journal),
    )


def _last_split(phase: Phase, report: Report, journal: FederationJournal) -> LastSplit | None:
    losses = {each.group: each.loss for each in report.evaluations if each.phase in {"end", SURVEY}}
    if phase.start is None or not losses:
        return None
    sources = sorted(blob.digest for (name, _), blob in journal.weights().items() if name == phase.start)
    schedule = f"{phase.rounds} rounds after {phase.rounds_before} of {phase.schedule_rounds}"
    return LastSplit(
        origin=f"{'+'.join(sources)} for {schedule}",
        losses=losses,
        group_scores=None if phase.split is None else phase.split.group_scores,
    )


def _sum(values: list[int | None]) -> int | None:
    return None if None in values else sum(value for value in values if value is not None)
