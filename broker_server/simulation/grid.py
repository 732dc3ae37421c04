"""All runs of an experiment: every method with every seed, some at once, each going on where it was stopped."""

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from broker_server.report import build as reports
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import FederationJournal, RoundRow
from broker_server.rounds.round_state import Result
from broker_server.server.config import ServerConfig
from broker_server.server.loop import ServerLoop, Watcher
from broker_server.server.state import StateFolder
from broker_server.simulation.errors import SimulationFailed, SimulationStopped
from broker_server.simulation.experiment import Conduct, Experiment, TasksOf, data_sets
from broker_server.simulation.fleet import WorkCosts, additive
from broker_server.simulation.labels import with_blank_inputs, with_labels
from broker_server.simulation.local_training import join, without_link
from broker_server.simulation.output import (
    BLANK,
    BUNDLES,
    COSTS,
    DATA,
    LOCAL,
    RUN_CACHE,
    RUNS,
    SERVER,
    SUMMARY,
    write_json,
)
from broker_server.simulation.run import RunSetting, simulate
from broker_server.simulation.run_cache import RunCache
from broker_server.simulation.summary import Summary, summarise
from broker_server.simulation.worker import measure, measure_stem
from devices.cli.settings import ConfigInvalid
from edge_runtime.datasets.dataset import DatasetInvalid
from edge_runtime.wire.bundle_folder import MANIFEST, read_folder


class Show(Protocol):
    """A seam for people who watch."""

    def begin(self, runs: int) -> None:
        """Begin to show this number of runs."""
        ...

    def step(self, run: str, text: str) -> None:
        """Show how far a run is."""
        ...

    def done(self, run: str, summary: Summary) -> None:
        """Show a run that has finished, now or before."""
        ...


class _Watcher:
    """Shows how far a run is."""

    def __init__(self, run: str, show: Show) -> None:
        self._run = run
        self._show = show

    def note(self, text: str) -> None:
        """Ignore notes: they stand in the journal."""

    def on_round_closed(self, row: RoundRow, _results: Mapping[str, Result]) -> None:
        """Show a round that has closed."""
        closed = row.round
        self._show.step(self._run, f"{closed.phase} {closed.group} {closed.index + 1}/{closed.rounds}")

    def refresh(self, coordinator: Coordinator, loop: ServerLoop | None) -> None:
        """Nothing moves between rounds."""


def run_grid(experiment: Experiment, out: Path, workers: Executor, show: Show, *, at_once: int) -> list[Summary]:
    """Run every method with every seed; return the summaries in the experiment's order.

    Seeds run at once, `at_once` of them, the methods of a seed one after another, so that shared group runs are
    computed once. Raises SimulationFailed, ConfigInvalid, BundleInvalid, SplitImpossible, FederationChanged.
    """
    data = data_sets(Path(experiment.data), experiment.devices)
    conducts = {method: experiment.conduct(method) for method in experiment.methods}
    configs = {
        (method, seed): experiment.config(method, seed, len(data))
        for seed in experiment.seeds
        for method in experiment.methods
    }
    own = {method: _data_of(conduct, data, out) for method, conduct in conducts.items()}
    fleets = {method: experiment.fleet_of(method) for method in experiment.methods}
    show.begin(len(configs))
    bundles = {seed: _bundle(experiment, seed, out) for seed in experiment.seeds}
    costs = _costs(out, workers, bundles[experiment.seeds[0]], data, experiment)
    stop = threading.Event()
    setting = RunSetting(
        data=data,
        fleet=experiment.fleet,
        costs=costs,
        cache=RunCache(out / RUN_CACHE),
        workers=workers,
        stop=stop,
    )

    def run_seed(seed: int) -> list[Summary]:
        found = []
        for method in experiment.methods:
            if stop.is_set():
                break
            name = f"{method} · seed {seed}"
            folder = out / RUNS / _folder(method) / str(seed)
            summary = _summary(folder)
            if summary is None:
                simulated = _train_locally if conducts[method].is_local else simulate
                try:
                    simulated(
                        folder,
                        configs[method, seed],
                        bundles[seed],
                        replace(setting, data=own[method], fleet=fleets[method]),
                        _Watcher(name, show),
                    )
                except SimulationStopped:
                    break
                summary = _summarised(method, seed, folder, experiment.tasks_of, conducts[method].baseline)
                write_json(folder / SUMMARY, summary)
            show.done(name, summary)
            found.append(summary)
        return found

    with ThreadPoolExecutor(at_once, "seed") as pool:
        futures = [pool.submit(run_seed, seed) for seed in experiment.seeds]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    place = {method: number for number, method in enumerate(experiment.methods)}
    summaries = sorted(
        (summary for future in futures for summary in future.result()), key=lambda each: (place[each.method], each.seed)
    )
    write_json(out / SUMMARY, summaries)
    return summaries


def _data_of(conduct: Conduct, data: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """Return the data sets of a method. Raises as `with_labels` does."""
    labelled = with_labels(data, conduct.tasks_of or {}, out / DATA)
    return with_blank_inputs(labelled, out / BLANK) if conduct.baseline == "constant" else labelled


def _train_locally(folder: Path, config: ServerConfig, bundle: Path, setting: RunSetting, watcher: Watcher) -> None:
    """Run each device for itself, one after another, and join their results as one run.

    Raises what `simulate` raises.
    """
    for device, path in setting.data.items():
        own = replace(setting, data={device: path}, fleet=without_link(setting.fleet, device))
        simulate(folder / LOCAL / device, config, bundle, own, watcher)
    with contextlib.ExitStack() as stack:
        journals = {device: _journal(folder / LOCAL / device, stack) for device in setting.data}
        state = StateFolder(folder / SERVER)
        stack.callback(state.close)
        state.clear()
        journal, _ = state.open()
        stack.callback(journal.close)
        join(journals, journal)
        reports.write(folder, reports.build(journal), {})


def _summarised(method: str, seed: int, folder: Path, tasks_of: TasksOf, baseline: str | None) -> Summary:
    """Return the summary of a finished run; devices count with their own tasks, whatever labels they had."""
    with contextlib.ExitStack() as stack:
        journal = _journal(folder, stack)
        return summarise(method, seed, reports.build(journal, tasks_of), journal, baseline)


def _journal(folder: Path, stack: contextlib.ExitStack) -> FederationJournal:
    state = StateFolder(folder / SERVER)
    stack.callback(state.close)
    journal, _ = state.open()
    stack.callback(journal.close)
    return journal


def _summary(folder: Path) -> Summary | None:
    try:
        return msgspec.json.decode((folder / SUMMARY).read_bytes(), type=Summary)
    except FileNotFoundError:
        return None


def _bundle(experiment: Experiment, seed: int, out: Path) -> Path:
    """Return the bundle of a seed, compiled if it is not there."""
    if experiment.bundle is not None:
        return Path(experiment.bundle)
    folder = out / BUNDLES / str(seed)
    if not (folder / MANIFEST).is_file():
        command = [sys.executable, "-m", "export", "compile", str(experiment.model)]
        done = subprocess.run([*command, "--out", str(folder), "--seed", str(seed)], check=False)
        if done.returncode != 0:
            raise SimulationFailed(f"`python -m export compile` ended with exit code {done.returncode}")
    return folder


def _costs(out: Path, workers: Executor, bundle: Path, data: Mapping[str, Path], experiment: Experiment) -> WorkCosts:
    """Return the costs of the work on this machine: measured once, then read; the stem's when first needed."""
    path, first, seed = out / COSTS, data[min(data)], experiment.seeds[0]
    configs = {method: experiment.config(method, seed, len(data)) for method in experiment.methods}
    divided = [method for method, config in configs.items() if config.is_apart]
    if divided and read_folder(bundle).embedding is None:
        raise ConfigInvalid(
            f"methods.{divided[0]}: split_learning.encoder: the model has no stem: give it one, or encoder = 'device'"
        )
    if path.is_file():
        costs = msgspec.json.decode(path.read_bytes(), type=WorkCosts)
    else:
        try:
            costs = _whole_costs(workers, bundle, first, next(iter(configs.values())))
        except DatasetInvalid as exc:
            raise ConfigInvalid(f"data: {first}: {exc}") from exc
        write_json(path, costs)
    if divided and costs.train_stem_s is None:
        stem = workers.submit(measure_stem, bundle, first, configs[divided[0]].training.batch).result()
        costs = msgspec.structs.replace(
            costs,
            train_stem_s=min(stem.train_s, costs.train_s),
            evaluate_stem_s=min(stem.evaluate_s, costs.evaluate_s),
        )
        write_json(path, costs)
    return costs


def _whole_costs(workers: Executor, bundle: Path, data: Path, config: ServerConfig) -> WorkCosts:
    """Return the costs of a device that has the encoder."""
    tasks = config.terms(read_folder(bundle)).tasks
    whole = workers.submit(
        measure, bundle, data, tuple(sorted(tasks)), config.training.batch, config.grouping.probe
    ).result()
    alone = {
        task: workers.submit(measure, bundle, data, (task,), config.training.batch, None).result() for task in tasks
    }
    train_s, train_head_s = additive(whole.train_s, {task: cost.train_s for task, cost in alone.items()})
    evaluate_s, evaluate_head_s = additive(whole.evaluate_s, {task: cost.evaluate_s for task, cost in alone.items()})
    return WorkCosts(
        train_s=train_s,
        train_head_s=train_head_s,
        evaluate_s=evaluate_s,
        evaluate_head_s=evaluate_head_s,
        probe_s=whole.probe_s or 0.0,
    )


def _folder(method: str) -> str:
    """Return the folder's name of a method; different names give different folders."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", method)
