"""The work of a worker process of a simulation: any simulated device's plans, on one thread.

It keeps the engine and the graphs that it has loaded; everything that belongs to a device is in its state folder, so
any process may do any device's work. In split learning it computes the encoder too, as an encoder server would.
Times are CPU seconds of this process.
"""

import hashlib
import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np

from broker_server.simulation.split_learning import EncoderState, LocalEncoderChannel, as_sent
from edge_runtime.agent.work import DownloadedPlan, EvaluationResult, TrainResult, WorkRefused
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.datasets.fit import check_fits
from edge_runtime.linear.dual import ascend
from edge_runtime.linear.losses import LOSSES
from edge_runtime.linear.worker import samples
from edge_runtime.training.encoder import Inputs, Representation, batch_size
from edge_runtime.training.engine import ARENA_BYTES, Engine
from edge_runtime.training.graph_arrays import named
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Model, Targets
from edge_runtime.training.probe import Probe
from edge_runtime.training.stem import Stem
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.trainer import load
from edge_runtime.wire.bundle_folder import WEIGHTS, graph_path, read_folder
from edge_runtime.wire.graph_names import value_of
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import RefusalReason
from edge_runtime.wire.names import Tasks
from edge_runtime.wire.tensors import transfer, unpack
from edge_runtime.wire.training import ProbeMethod
from edge_runtime.worker import CHECKPOINT_S, LocalWorker

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class DeviceTask:
    """A plan to be worked on for a device."""

    data: Path
    state: Path
    memory_budget_bytes: int
    downloaded: DownloadedPlan
    encoder_state: EncoderState | None = None
    """The encoder's side, in split learning."""


@dataclass(frozen=True, kw_only=True)
class TaskRefused:
    """The device's worker refused the plan."""

    reason: RefusalReason
    detail: str


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """The result of a plan, its CPU seconds here, and the bytes to the encoder server and back."""

    result: TrainResult | EvaluationResult
    cpu_s: float
    exchanged: tuple[int, int] = (0, 0)


def perform(task: DeviceTask) -> TaskDone | TaskRefused:
    """Work on a plan and return its result. Its peak memory is left out: the process is no board."""
    downloaded = replace(task.downloaded, plan=as_sent(task.downloaded.plan))
    is_apart = downloaded.plan.split_learning is not None
    if is_apart and task.encoder_state is None:
        return TaskRefused(reason="encoder_server", detail="the round was over before this device could begin with it")
    worker = LocalWorker(
        task.data,
        task.state,
        1,
        # An encoder server that ends with this process keeps nothing that a checkpoint could go on from.
        checkpoint_s=math.inf if is_apart else CHECKPOINT_S,
        memory_budget_bytes=task.memory_budget_bytes,
        graph_cache=_graph_cache(),
        # No secret: simulations are repeated.
        noise_key=hashlib.sha256(task.encoder_state.device.encode()).digest() if task.encoder_state else b"",
    )
    do = worker.train if downloaded.plan.work == "train" else worker.evaluate
    before_s = time.process_time()
    exchange = None if task.encoder_state is None else LocalEncoderChannel(task.encoder_state, _encoder_graph_cache())
    try:
        result = do(downloaded, lambda *_: None, exchange)
    except WorkRefused as refusal:
        return TaskRefused(reason=refusal.reason, detail=refusal.detail)
    return TaskDone(
        result=replace(result, peak_rss_bytes=None),
        cpu_s=time.process_time() - before_s,
        exchanged=(0, 0) if exchange is None else (exchange.bytes_up, exchange.bytes_down),
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredCost:
    """CPU seconds of one thread: of a training step and of an evaluation by sample, of a probe by batch."""

    train_s: float
    evaluate_s: float
    probe_s: float | None


def measure(bundle: Path, data: Path, tasks: Tasks, batch: int, probe: ProbeMethod | None) -> MeasuredCost:
    """Return what training a group costs this machine: the median of repetitions, without the first.

    Raises DatasetInvalid for data that the bundle was not compiled for.
    """
    whole = read_folder(bundle)
    if whole.linear is not None:
        return _measure_linear(whole, data)
    manifest = whole.group(tasks, whole.weights)
    split = Dataset.open(data).train
    check_fits(manifest, split)
    weights = transfer(whole.table, unpack(whole.table, (bundle / WEIGHTS).read_bytes()), manifest.table)
    graphs = _graph_cache().of(manifest, lambda name, _: graph_path(bundle, name))
    model = Model(manifest, graphs, np.array(weights), save_activations=(True,) * len(manifest.stages))
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
        TaskMetrics(model).add(z, targets)
        evaluate.append(time.process_time() - at_s)
        if probe is not None:
            probed.append(_probe_s(model, Probe(method=probe, lr=0.01, weight_decay=0.0), x, targets))
    return MeasuredCost(
        train_s=median(train[1:]) / len(chosen),
        evaluate_s=median(evaluate[1:]) / len(chosen),
        probe_s=median(probed[1:]) if probed else None,
    )


def _measure_linear(manifest: Manifest, data: Path) -> MeasuredCost:
    """Return what a pass over a device's data costs: a step on each sample, or all their predictions."""
    x, y = samples(manifest, Dataset.open(data).train)
    assert manifest.linear is not None
    loss, w, alpha = LOSSES[manifest.linear.loss], np.zeros(x.shape[1]), np.zeros(len(x))
    train, evaluate = [], []
    for _ in range(REPEATS + 1):
        at_s = time.process_time()
        ascend(x, y, alpha, w, loss, 1.0, range(len(x)))
        train.append(time.process_time() - at_s)
        at_s = time.process_time()
        loss.value(x @ w, y)
        evaluate.append(time.process_time() - at_s)
    return MeasuredCost(train_s=median(train[1:]) / len(x), evaluate_s=median(evaluate[1:]) / len(x), probe_s=None)


@dataclass(frozen=True, kw_only=True)
class MeasuredStemCost:
    """CPU seconds of one thread by sample: of a training step of the stem alone, and of an evaluation."""

    train_s: float
    evaluate_s: float


def measure_stem(bundle: Path, data: Path, batch: int) -> MeasuredStemCost:
    """Return what the stem of a bundle costs this machine: the median as in `measure`."""
    manifest = read_folder(bundle)
    assert manifest.embedding is not None
    graphs = _graph_cache().of(manifest, lambda name, _: graph_path(bundle, name))
    table = manifest.table
    weights = unpack(table, (bundle / WEIGHTS).read_bytes())
    parameters = named(table, weights, "param").get("stem", {}) | dict(graphs.fixed.get("stem", {}))
    inputs = {**parameters, "seed": np.array(0, np.int64)}
    gradients = named(table.parameters, np.zeros(table.parameters.size, np.float32), "grad").get("stem", {})
    stem, split = Stem(manifest.embedding, graphs), Dataset.open(data).train
    found, _ = split.batch(range(min(batch, len(split))), (), tuple(manifest.inputs))
    x = {value_of(name): array for name, array in found.items()}
    train, evaluate = [], []
    for _ in range(REPEATS + 1):
        at_s = time.process_time()
        e = stem.forward(x, inputs)
        if gradients:
            stem.backward(x, e, inputs, gradients)
        train.append(time.process_time() - at_s)
        at_s = time.process_time()
        stem.predict(x, inputs)
        evaluate.append(time.process_time() - at_s)
    return MeasuredStemCost(train_s=median(train[1:]) / batch_size(x), evaluate_s=median(evaluate[1:]) / batch_size(x))


def _probe_s(model: Model, probe: Probe, x: Inputs, targets: Targets) -> float:
    done, dz = model.forward(x), {}

    def keep(task: str, _: float, found: Representation) -> None:
        dz[task] = tuple(map(np.copy, found))

    losses, _ = model.run_heads(done.z, targets, on_task=keep)
    at_s = time.process_time()
    probe.measure(model, done, targets, losses, dz)
    return time.process_time() - at_s


@lru_cache(maxsize=1)
def _engine() -> Engine:
    """Return the process's engine, made when it is first needed."""
    return Engine(1, ARENA_BYTES)


@lru_cache(maxsize=1)
def _graph_cache() -> GraphCache:
    """Return the cache of devices' graphs."""
    return GraphCache(_engine())


@lru_cache(maxsize=1)
def _encoder_graph_cache() -> GraphCache:
    """Return the cache of the encoder's graphs, which devices' plans do not name."""
    return GraphCache(_engine())
