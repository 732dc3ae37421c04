"""What a worker process of a simulation does: the work of any simulated device, on one thread.

A host keeps the engine and the graphs that it has loaded; everything that belongs to a device is in its state folder,
so any host may do any device's work. Times are CPU seconds of this process.
"""

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np

from edge_runtime.agent.work import EvaluationResult, Reason, TrainResult, WorkRefused
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.engine import ARENA_BYTES, Engine
from edge_runtime.training.encoder import Batch, Representation
from edge_runtime.training.model import GraphShelf, Model, Targets
from edge_runtime.training.probe import Probe
from edge_runtime.training.scores import Scores
from edge_runtime.training.trainer import load
from edge_runtime.training.worker import LocalWorker
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.manifest import WEIGHTS, Manifest, graph_path, read_folder
from edge_runtime.wire.messages import Plan, ProbeMethod
from edge_runtime.wire.names import Tasks
from edge_runtime.wire.tensors import Vector, transfer, unpack

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """A plan to be worked on for a device."""

    data: Path
    state: Path
    memory_budget_bytes: int
    plan: Plan
    manifest: Manifest
    graphs: Path
    """The blob store where the manifest's graphs are whole."""
    weights: Vector


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The device's worker refused the plan."""

    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """What the plan asked for, and the CPU seconds that it took this process."""

    result: TrainResult | EvaluationResult
    cpu_s: float


def perform(task: Task) -> Done | Refused:
    """Do what the plan asks for. The peak memory of the result is left out: the process is no board."""
    worker = LocalWorker(task.data, task.state, 1, memory_budget_bytes=task.memory_budget_bytes, shelf=_shelf())
    do = worker.train if task.plan.work == "train" else worker.evaluate
    before_s = time.process_time()
    try:
        result = do(task.plan, task.manifest, BlobStore(task.graphs), task.weights, lambda *_: None)
    except WorkRefused as refusal:
        return Refused(reason=refusal.reason, detail=refusal.detail)
    return Done(result=replace(result, peak_rss_bytes=None), cpu_s=time.process_time() - before_s)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds of one thread: of a training step and of an evaluation by sample, of a probe by batch."""

    train_s: float
    evaluate_s: float
    probe_s: float | None


def measure(bundle: Path, data: Path, tasks: Tasks, batch: int, probe: ProbeMethod | None) -> Cost:
    """What training a group costs this machine: the median of some repetitions, the first being left out."""
    whole = read_folder(bundle)
    manifest = whole.group(tasks, whole.weights)
    weights = transfer(whole.table, unpack(whole.table, (bundle / WEIGHTS).read_bytes()), manifest.table)
    graphs = _shelf().of(manifest, lambda name, _: graph_path(bundle, name))
    model = Model(manifest, graphs, np.array(weights), keep=(True,) * len(manifest.stages))
    split = Dataset.open(data).train
    chosen = range(min(batch, len(split)))
    x, targets = load(model, split, chosen)
    train, evaluate, probed = [], [], []
    for _ in range(REPEATS + 1):
        at_s = time.process_time()
        model.learn(x, targets)
        train.append(time.process_time() - at_s)
        at_s = time.process_time()
        z = model.encode(x)
        for task in model.tasks:
            model.evaluate(task, z, targets[task])
        Scores(model).add(z, targets)
        evaluate.append(time.process_time() - at_s)
        if probe is not None:
            probed.append(_probe_s(model, Probe(method=probe, lr=0.01, weight_decay=0.0), x, targets))
    return Cost(
        train_s=median(train[1:]) / len(chosen),
        evaluate_s=median(evaluate[1:]) / len(chosen),
        probe_s=median(probed[1:]) if probed else None,
    )


def _probe_s(model: Model, probe: Probe, x: Batch, targets: Targets) -> float:
    done, dz = model.forward(x), {}

    def keep(task: str, _: float, found: Representation) -> None:
        dz[task] = tuple(map(np.copy, found))

    losses, _ = model.heads(done.z, targets, keep=keep)
    at_s = time.process_time()
    probe.measure(model, done, targets, losses, dz)
    return time.process_time() - at_s


@lru_cache(maxsize=1)
def _shelf() -> GraphShelf:
    """The process's engine and graphs, made when they are first needed."""
    return GraphShelf(Engine(1, ARENA_BYTES))
