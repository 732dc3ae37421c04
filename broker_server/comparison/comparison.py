"""One experiment's methods side by side, from the summaries of its runs. Pure: missing runs are named."""

# coverage: every branch

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from broker_server.comparison.choices import ChoiceResult, Families, gate_of
from broker_server.comparison.published import TASKS, Published, published
from broker_server.grouping.gate import Gate
from broker_server.grouping.statistics import Estimate, difference, estimate, ratio
from broker_server.simulation.outline import Outline
from broker_server.simulation.summary import TOTAL, Summary
from edge_runtime.wire.metrics import METRICS, MetricName

REFERENCE = "one_by_one"
"""The strategy that times and joules are related to, where the experiment names no method."""


class ComparisonImpossible(ValueError):
    """There is nothing to compare, or it contradicts itself; the sentence says why."""


class Relative(msgspec.Struct, frozen=True, kw_only=True):
    """A method in relation to the reference, paired by seed: ratios, and for losses the difference."""

    test_loss: Estimate | None
    """Of the total."""
    task_loss: dict[str, Estimate]
    compute: Estimate | None
    critical_path: Estimate | None
    simulated_time: Estimate | None
    simulated_energy: Estimate | None


class MethodResult(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a method over its seeds. None was not measured."""

    method: str
    section: str
    strategy: str | None
    """None while no seed has finished."""
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    """Seeds of the experiment that have not finished."""
    best: bool
    """Whether no other method with as many seeds has a lower mean of the total test loss."""
    test_loss: dict[str, Estimate]
    """By task, and `total`."""
    test_metric: dict[str, Estimate]
    """By task, of those that have a metric."""
    worst: dict[str, Estimate] = {}
    """By task, its metric or loss on the device that is served worst …"""
    bottom_decile: dict[str, Estimate] = {}
    """… and the best of the worst tenth of the devices."""
    best_metrics: tuple[str, ...]
    """The tasks whose metric is better with no other method with as many seeds."""
    rounds: Estimate | None
    compute_s: Estimate | None
    """Measured: CPU seconds of one core of the simulating machine, over all devices."""
    critical_path_s: Estimate | None
    """Measured: those of the slowest device of each round."""
    simulated_s: Estimate | None
    """Modelled by the simulated boards."""
    simulated_j: Estimate | None
    """Modelled by the simulated boards' power."""
    bytes_up: Estimate | None
    bytes_down: Estimate | None
    relative: Relative | None
    """None without a reference."""
    groups: dict[int, tuple[tuple[str, ...], ...]]
    """The groups of the last phase, by seed."""
    choice: ChoiceResult | None
    """How well they were chosen; None where no other division was trained in the same way."""
    published: Published | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment."""

    name: str
    title: str
    tasks: tuple[str, ...]
    metrics: dict[str, MetricName]
    """By task, of those that have one."""
    seeds: tuple[int, ...]
    reference: str | None
    """The method that the others are related to."""
    gate: Gate
    """Whether the experiment can tell groupings apart."""
    methods: tuple[MethodResult, ...]

    @property
    def sections(self) -> tuple[str, ...]:
        """The names of the sections, in the methods' order."""
        return tuple(dict.fromkeys(each.section for each in self.methods))

    @property
    def missing(self) -> tuple[str, ...]:
        """The runs that have not finished."""
        return tuple(f"{each.method} · seed {seed}" for each in self.methods for seed in each.missing)


def compare(name: str, outline: Outline, summaries: Sequence[Summary]) -> Comparison:
    """Return the comparison of an experiment; methods that the outline does not have come last.

    Raises ComparisonImpossible.
    """
    if not summaries:
        raise ComparisonImpossible(f"{name}: no run has finished yet")
    found: dict[str, dict[int, Summary]] = {method: {} for method in outline.methods}
    for summary in summaries:
        runs = found.setdefault(summary.method, {})
        if summary.seed in runs:
            raise ComparisonImpossible(f"{name}: {summary.method} with seed {summary.seed} is there twice")
        runs[summary.seed] = summary
    seeds = tuple(sorted({*outline.seeds, *(each.seed for each in summaries)}))
    tasks = tuple(sorted({task for each in summaries for task in each.test_loss or {}} - {TOTAL}))
    reference = _reference(outline, found)
    sections = outline.section_of()
    best = _best(found)
    metrics = _metrics(name, summaries)
    best_metrics = {task: _best_by(found, task, metric) for task, metric in metrics.items()}
    families = Families(summaries, tasks)
    ordered = sorted(found, key=lambda method: _place(outline, sections.get(method, "")))
    return Comparison(
        name=name,
        title=outline.title or name,
        tasks=tasks,
        metrics=metrics,
        seeds=seeds,
        reference=reference,
        gate=gate_of({method: found[method] for method in ordered}, tasks, families),
        methods=tuple(
            MethodResult(
                method=method,
                section=sections.get(method, ""),
                strategy=next((run.strategy for run in found[method].values()), None),
                seeds=tuple(sorted(found[method])),
                missing=_missing(outline, method, found[method]),
                best=method in best,
                test_loss=_losses(found[method], (*tasks, TOTAL)),
                test_metric=_measured(found[method], metrics),
                worst=_by_task(found[method], tasks, lambda run, task: run.spread[task].worst),
                bottom_decile=_by_task(found[method], tasks, lambda run, task: run.spread[task].bottom_decile),
                best_metrics=tuple(task for task in metrics if method in best_metrics[task]),
                rounds=_mean(found[method], lambda run: run.rounds),
                compute_s=_mean(found[method], lambda run: run.compute_s),
                critical_path_s=_mean(found[method], lambda run: run.critical_path_s),
                simulated_s=_mean(found[method], lambda run: run.simulated_s),
                simulated_j=_mean(found[method], lambda run: run.simulated_j),
                bytes_up=_mean(found[method], lambda run: run.bytes_up),
                bytes_down=_mean(found[method], lambda run: run.bytes_down),
                relative=None if reference is None else _relative(found[method], found[reference], tasks),
                groups={seed: found[method][seed].groups for seed in sorted(found[method])},
                choice=families.choice(found[method]),
                published=published(method) if set(tasks) == TASKS else None,
            )
            for method in ordered
        ),
    )


def _missing(outline: Outline, method: str, runs: Mapping[int, Summary]) -> tuple[int, ...]:
    return tuple(seed for seed in outline.seeds if seed not in runs) if method in outline.methods else ()


Value = Callable[[Summary], float | None]


def _total(run: Summary) -> float | None:
    return (run.test_loss or {}).get(TOTAL)


def _of(runs: Mapping[int, Summary], value: Value) -> dict[int, float | None]:
    return {seed: value(run) for seed, run in runs.items()}


def _mean(runs: Mapping[int, Summary], value: Value) -> Estimate | None:
    return estimate(_of(runs, value).values())


def _losses(runs: Mapping[int, Summary], names: Sequence[str]) -> dict[str, Estimate]:
    means = {name: estimate((run.test_loss or {}).get(name) for run in runs.values()) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


def _by_task(
    runs: Mapping[int, Summary], tasks: Sequence[str], value: Callable[[Summary, str], float]
) -> dict[str, Estimate]:
    """Return a figure of the devices' spread by task, where it was measured."""

    def of(task: str) -> Value:
        return lambda run: value(run, task) if task in run.spread else None

    means = {task: _mean(runs, of(task)) for task in tasks}
    return {task: mean for task, mean in means.items() if mean is not None}


def _reference(outline: Outline, found: Mapping[str, Mapping[int, Summary]]) -> str | None:
    """Return the method that the outline names, else the first that is one-by-one."""
    if found.get(outline.reference):
        return outline.reference
    return next((m for m, runs in found.items() if any(r.strategy == REFERENCE for r in runs.values())), None)


def _relative(runs: Mapping[int, Summary], base: Mapping[int, Summary], tasks: Sequence[str]) -> Relative:
    def over(value: Value) -> Estimate | None:
        return ratio(_of(runs, value), _of(base, value))

    def further(task: str) -> Estimate | None:
        def loss(run: Summary) -> float | None:
            return (run.test_loss or {}).get(task)

        return difference(_of(runs, loss), _of(base, loss))

    return Relative(
        test_loss=difference(_of(runs, _total), _of(base, _total)),
        task_loss={task: found for task in tasks if (found := further(task)) is not None},
        compute=over(lambda run: run.compute_s),
        critical_path=over(lambda run: run.critical_path_s),
        simulated_time=over(lambda run: run.simulated_s),
        simulated_energy=over(lambda run: run.simulated_j),
    )


def _metrics(name: str, summaries: Sequence[Summary]) -> dict[str, MetricName]:
    """Return the tasks' metrics. Raises ComparisonImpossible where runs have measured a task by different ones."""
    found: dict[str, MetricName] = {}
    for summary in summaries:
        for task, mean in (summary.test_metric or {}).items():
            if found.setdefault(task, mean.name) != mean.name:
                raise ComparisonImpossible(
                    f"{name}: some runs have measured {task} by {found[task]}, others by {mean.name}"
                )
    return dict(sorted(found.items()))


def _metric(task: str) -> Value:
    def of(run: Summary) -> float | None:
        mean = (run.test_metric or {}).get(task)
        return None if mean is None else mean.value

    return of


def _measured(runs: Mapping[int, Summary], metrics: Iterable[str]) -> dict[str, Estimate]:
    means = {task: _mean(runs, _metric(task)) for task in metrics}
    return {task: mean for task, mean in means.items() if mean is not None}


def _best_by(found: Mapping[str, Mapping[int, Summary]], task: str, metric: MetricName) -> set[str]:
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    return _least({method: _mean(runs, _metric(task)) for method, runs in found.items()}, sign)


def _best(found: Mapping[str, Mapping[int, Summary]]) -> set[str]:
    return _least({method: _mean(runs, _total) for method, runs in found.items()})


def _least(means: Mapping[str, Estimate | None], sign: float = 1.0) -> set[str]:
    """Return the methods with the lowest mean among those with the most seeds."""
    known = {method: mean for method, mean in means.items() if mean is not None}
    most = max((each.n for each in known.values()), default=0)
    lowest = min((sign * each.mean for each in known.values() if each.n == most), default=None)
    return {method for method, each in known.items() if each.n == most and sign * each.mean == lowest}


def _place(outline: Outline, section: str) -> int:
    """Methods in no section come first, then the sections in their order."""
    return 0 if section == "" else 1 + tuple(outline.sections).index(section)
