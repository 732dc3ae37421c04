"""report.json: the report of a federation, built from its journal alone. None is a figure that was not measured."""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from broker_server.grouping.affinity import Affinities, AffinityLedger
from broker_server.grouping.gate import Gate
from broker_server.grouping.quality import ChoiceQuality
from broker_server.grouping.search import Mode, TaskSplit
from broker_server.report.choice import beside, choice, device_gate
from broker_server.report.energy import EnergySum, total
from broker_server.report.linear import LinearRound, linear_round
from broker_server.report.spread import Spread, spread
from broker_server.rounds.journal import FederationJournal, RoundRow
from broker_server.rounds.losses import weighted_losses
from broker_server.rounds.measured import measured
from broker_server.rounds.round_state import Result
from broker_server.strategies.planner import Phase
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.manifest import Artifacts
from edge_runtime.wire.messages import Evaluation, Update
from edge_runtime.wire.metrics import MetricName
from edge_runtime.wire.names import Tasks, group_id

REPORT = "report.json"
MODELS = "models"
MAX_REPORT_BYTES = 256 << 20
STAGES = ("before", "merged", "end")
_PACKAGES = ("mas-edge", "numpy", "msgspec", "safetensors", "paho-mqtt", "cryptography", "pyjwt")
Losses = dict[str, float]
_Names = dict[str, MetricName | None]


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """One round of training. Losses are means over devices, weighted by examples; `val_loss` is before training."""

    round: int
    phase: str
    group: str
    clients: tuple[str, ...]
    train_loss: Losses
    val_loss: Losses | None
    wall_s: float
    bytes_up: int | None
    bytes_down: int | None
    update_schemes: dict[str, int]
    """The number of updates that came by each scheme."""
    update_ratio: float | None
    """The bytes of the updates' files, as a fraction of the bytes of as many weights in full (fp32)."""
    peak_rss_bytes: int | None
    """The largest of any device."""
    energy: EnergySum
    """Over all members of the round, those whose work gave no result included."""
    energy_by_device: dict[str, Energy | None]
    linear: LinearRound | None = None
    """Of a linear model."""


class MetricMean(msgspec.Struct, frozen=True, kw_only=True):
    """A task's metric: the mean over devices, weighted by examples.

    So an mIoU is the mean of the devices', not that of all their pixels, and so is an RMSE.
    """

    name: MetricName
    value: float


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation of a group, by task. Losses and metrics are means over devices, weighted by examples."""

    round: int
    phase: str
    group: str
    loss: Losses
    metrics: dict[str, MetricMean]
    """Without the tasks that have no metric, or whose metric was not measured."""
    spread: dict[str, Spread] = {}
    """By task: how its metric, or its loss where it has none, differs between devices."""


class EnergyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of the federation: of all closed rounds, and of those of each group."""

    total: EnergySum
    groups: dict[str, EnergySum]


class AffinityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Affinities, [i][j] being i→j; None for a pair that no device measured."""

    tasks: tuple[str, ...]
    values: list[list[float | None]]
    counts: list[list[int]]


class SplitReport(msgspec.Struct, frozen=True, kw_only=True):
    """The groups found."""

    groups: tuple[tuple[str, ...], ...]
    score: float
    mode: Mode
    gate: Gate | None = None
    """Whether the federation could tell groupings apart, over its devices; None in a report of before."""
    choice: ChoiceQuality | None = None
    """How the groups stand among others; None where no other was measured."""


class OrtTrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    """ONNX Runtime training artifacts made during the run: their error against the portable graphs, or the problem."""

    max_relative_error: float | None
    problem: str | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """report.json."""

    strategy: str
    tasks: tuple[str, ...]
    seed: int
    versions: dict[str, str]
    rounds: list[RoundReport]
    energy: EnergyReport
    affinity: AffinityReport | None
    split: SplitReport | None
    ort_training: dict[str, OrtTrainingReport] = {}
    """By group, for those whose ONNX Runtime training artifacts were to be made."""
    test_loss: dict[str, Losses | None]
    """For `before`, `merged` and `end`: by task, with `total` where every task was measured."""
    wall_s: float | None
    evaluations: list[EvaluationReport] = []
    test_metrics: dict[str, dict[str, MetricMean] | None] = {}
    """For the stages of `test_loss`: by task, of the group whose loss is reported for the task."""
    spread: dict[str, Spread] = {}
    """By task, at the end: how it differs between devices."""
    settings: dict[str, object] = {}
    """What the federation cannot change once it has begun."""


class ReportImpossible(ValueError):
    """There is no federation to report on, or a report that cannot be read or drawn; the sentence states which."""


def build(journal: FederationJournal, tasks_of: Mapping[str, Tasks] | None = None) -> Report:
    """Return the report of a journal. Raises ReportImpossible if no federation has begun.

    A device in `tasks_of` counts with its evaluations of these tasks alone.
    """
    phases = [phase for phase, _ in journal.phases()]
    settings = msgspec.json.decode(journal.fact("settings") or "{}", type=dict[str, object])
    if not phases:
        raise ReportImpossible("no federation has begun in this state folder, so there is nothing to report")
    tasks = _tasks(phases)
    closed = [
        (row, _counting(journal.results(row.round.number), tasks_of or {}))
        for row in journal.rounds()
        if row.closed_s is not None
    ]
    full = {group: blob.size_bytes for group, blob in journal.weights().items()}
    measured = affinities(journal)
    split = next((phase.split for phase in reversed(phases) if phase.split is not None), None)
    evaluations = _evaluations(closed, msgspec.json.decode(journal.fact("metrics") or "{}", type=_Names))
    times = [time_s for row, _ in closed for time_s in (row.started_s, row.closed_s) if time_s is not None]
    return Report(
        strategy=str(settings.get("strategy")),
        tasks=tasks,
        seed=msgspec.convert(settings.get("seed", 0), int),
        versions=versions() | msgspec.json.decode(journal.fact("versions") or "{}", type=dict[str, str]),
        rounds=[
            round_report(
                row,
                results,
                full.get((row.round.phase, row.round.group)),
                journal.energy(row.round.number),
                linear_round(journal, row.round.number, results),
            )
            for row, results in closed
            if row.round.work == "train"
        ],
        energy=energy_report((row, journal.energy(row.round.number)) for row, _ in closed),
        affinity=None if measured is None else _affinity(measured),
        split=None if split is None else _split(split, tasks, closed),
        ort_training={group: _ort_training(outcome) for group, outcome in journal.ort_training().items()},
        test_loss={stage: _test_loss(stage, evaluations, tasks) for stage in STAGES},
        wall_s=max(times) - min(times) if times else None,
        evaluations=evaluations,
        test_metrics={stage: _test_metrics(stage, evaluations) for stage in STAGES},
        spread={task: each.spread[task] for task, each in _serving("end", evaluations).items() if task in each.spread},
        settings=settings,
    )


def affinities(journal: FederationJournal) -> Affinities | None:
    """Return the affinities measured in the closed rounds; None if there are none."""
    phases = [phase for phase, _ in journal.phases()]
    ledger = AffinityLedger(_tasks(phases))
    for found in measured(journal):
        ledger.add(*found)
    return ledger.result() if len(ledger) else None


def round_report(
    row: RoundRow,
    results: Mapping[str, Result],
    full_bytes: int | None = None,
    energy: Mapping[str, Energy] | None = None,
    linear: LinearRound | None = None,
) -> RoundReport:
    """Return the report of a closed round of training.

    `full_bytes` is the size of the group's weights in full, where known. `energy` is what devices have reported since
    they sent their results.
    """
    energies = _energies(row, {device: result.energy for device, result in results.items()} | dict(energy or {}))
    updates = [result for result in results.values() if isinstance(result, Update)]
    validated = [(update.val_loss, update.examples) for update in updates if update.val_loss is not None]
    peaks = [update.peak_rss_bytes for update in updates if update.peak_rss_bytes is not None]
    sent = sum(update.weights.size_bytes for update in updates)
    return RoundReport(
        round=row.round.number,
        phase=row.round.phase,
        group=row.round.group,
        clients=tuple(sorted(results)),
        train_loss=weighted_losses((update.train_loss, update.examples) for update in updates),
        val_loss=weighted_losses(validated) or None,
        wall_s=(row.closed_s or row.started_s) - row.started_s,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        update_schemes=dict(sorted(Counter(update.scheme for update in updates).items())),
        update_ratio=sent / (len(updates) * full_bytes) if updates and full_bytes else None,
        peak_rss_bytes=max(peaks, default=None),
        energy=total(tuple(energies.values())),
        energy_by_device=energies,
        linear=linear,
    )


def trained(journal: FederationJournal) -> tuple[Tasks, ...]:
    """Return the groups of the last phase of training; none if no training has begun."""
    return next((phase.groups for phase, _ in reversed(journal.phases()) if phase.work == "train"), ())


def models(journal: FederationJournal, blobs: BlobStore) -> dict[str, bytes]:
    """Return the newest weights of every group of the last phase of training, by group, as safetensors.

    Those of devices that have their own are GROUP/DEVICE.
    """
    phase = next((phase.name for phase, _ in reversed(journal.phases()) if phase.work == "train"), "")
    current, own = journal.weights(), journal.device_weights()
    found = {}
    for group in map(group_id, trained(journal)):
        found[group] = current[phase, group]
        found |= {f"{group}/{device}": blob for device, blob in own.get((phase, group), {}).items()}
    return {name: blobs.read(blob.digest) for name, blob in found.items()}


def write(folder: Path, report: Report, weights: Mapping[str, bytes]) -> None:
    """Write report.json, models/<group>.safetensors, and those of devices in models/<group>/."""
    for group, data in weights.items():
        write_atomic(folder / MODELS / f"{group}.safetensors", data)
    write_atomic(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read(path: Path) -> Report:
    """Return the report in a file. Raises ReportImpossible."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_REPORT_BYTES), type=Report)
    except OSError as exc:
        raise ReportImpossible(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ReportImpossible(
            f"{path} is not a report of this version ({exc}): `python -m broker_server report` writes it again"
        ) from exc


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the server uses."""
    installed = {str(package.metadata["Name"]).lower(): package.version for package in metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in _PACKAGES if name in installed}


def energy_report(closed: Iterable[tuple[RoundRow, Mapping[str, Energy]]]) -> EnergyReport:
    """Return the energy of closed rounds, measuring rounds included."""
    plans: dict[str, list[Energy | None]] = {}
    for row, energy in closed:
        plans.setdefault(row.round.group, []).extend(_energies(row, energy).values())
    return EnergyReport(
        total=total([energy for group in plans.values() for energy in group]),
        groups={group: total(energies) for group, energies in plans.items()},
    )


def _energies(row: RoundRow, known: Mapping[str, Energy | None]) -> dict[str, Energy | None]:
    """Return the energy of each member, in order; None for one that has not reported it."""
    return {device: known.get(device) for device in sorted({*row.members, *known})}


def _counting(results: Mapping[str, Result], tasks_of: Mapping[str, Tasks]) -> dict[str, Result]:
    """Return the results of a round; evaluations of a device in `tasks_of` have the examples of its own tasks alone."""
    found = dict(results)
    for device, result in results.items():
        if device in tasks_of and isinstance(result, Evaluation):
            examples = {task: number for task, number in result.examples.items() if task in tasks_of[device]}
            found[device] = msgspec.structs.replace(result, examples=examples)
    return found


def _tasks(phases: Iterable[Phase]) -> tuple[str, ...]:
    return tuple(sorted({task for phase in phases for group in phase.groups for task in group}))


def _split(
    split: TaskSplit, tasks: tuple[str, ...], closed: Iterable[tuple[RoundRow, Mapping[str, Result]]]
) -> SplitReport:
    measured = beside((row.round, results) for row, results in closed)
    return SplitReport(
        groups=split.groups,
        score=split.score,
        mode=split.mode,
        gate=device_gate(len(split.groups), tasks, measured),
        choice=choice(split, tasks, measured),
    )


def _ort_training(outcome: Artifacts | str) -> OrtTrainingReport:
    if isinstance(outcome, str):
        return OrtTrainingReport(max_relative_error=None, problem=outcome)
    return OrtTrainingReport(max_relative_error=outcome.max_relative_error, problem=None)


def _affinity(measured: Affinities) -> AffinityReport:
    values = [[float(value) if np.isfinite(value) else None for value in row] for row in measured.values]
    return AffinityReport(tasks=measured.tasks, values=values, counts=measured.counts.tolist())


def _evaluations(closed: Iterable[tuple[RoundRow, Mapping[str, Result]]], names: _Names) -> list[EvaluationReport]:
    """Return the reports of rounds of evaluation; `names` are the tasks' metrics."""
    found = []
    for row, results in closed:
        measured = row.round
        if measured.work != "evaluate":
            continue
        evaluations = [result for result in results.values() if isinstance(result, Evaluation)]
        values = weighted_losses((each.metrics, each.examples) for each in evaluations if each.metrics is not None)
        named = [(task, name, values[task]) for task, name in names.items() if name is not None and task in values]
        found.append(
            EvaluationReport(
                round=measured.number,
                phase=measured.phase,
                group=measured.group,
                loss=weighted_losses((each.loss, each.examples) for each in evaluations),
                metrics={task: MetricMean(name=name, value=value) for task, name, value in named},
                spread=_spread(results, {task: name for task, name, _ in named}),
            )
        )
    return found


def _spread(results: Mapping[str, Result], names: Mapping[str, MetricName]) -> dict[str, Spread]:
    """Return how each task's metric, or loss, differs between the devices that have examples of it."""
    values: dict[str, dict[str, float]] = {}
    for device, result in results.items():
        if isinstance(result, Evaluation):
            for task, loss in result.loss.items():
                value = (result.metrics or {}).get(task) if task in names else loss
                if value is not None and result.examples.get(task, 0):
                    values.setdefault(task, {})[device] = value
    return {task: spread(found, names.get(task)) for task, found in sorted(values.items())}


def _serving(stage: str, evaluations: Iterable[EvaluationReport]) -> dict[str, EvaluationReport]:
    """Return each task's evaluation in a stage: of several groups the one with the least loss of the task."""
    best: dict[str, EvaluationReport] = {}
    for each in evaluations:
        if each.phase == stage:
            for task, loss in each.loss.items():
                if task not in best or loss < best[task].loss[task]:
                    best[task] = each
    return best


def _test_loss(stage: str, evaluations: Iterable[EvaluationReport], tasks: tuple[str, ...]) -> Losses | None:
    """Return the losses of one stage, its groups together; a task in several groups has its least loss."""
    losses = {task: each.loss[task] for task, each in _serving(stage, evaluations).items()}
    if set(losses) == set(tasks):
        return losses | {"total": sum(losses.values())}
    return losses or None


def _test_metrics(stage: str, evaluations: Iterable[EvaluationReport]) -> dict[str, MetricMean] | None:
    """Return the metrics of one stage; each task's is from the same evaluation as its loss."""
    serving = sorted(_serving(stage, evaluations).items())
    return {task: each.metrics[task] for task, each in serving if task in each.metrics} or None
