"""The commands `train` and `predict`: local training without a network, and a plain model's predictions.

Exit codes: 0 done, 2 an option is wrong, 3 the bundle, the model or the data cannot be used.
"""

import argparse
import math
import statistics
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from devices.cli.run import BAD_INPUT, DONE, UsageError
from devices.cli.run import run as run_command
from devices.cli.settings import COMMAND_LINE, add_flags, build, of_flags, settings_of
from devices.cli.values import size
from edge_runtime.datasets.class_balance import imbalance_text
from edge_runtime.datasets.dataset import Dataset, DatasetInvalid, Split, convert
from edge_runtime.datasets.fit import check_fits
from edge_runtime.training.engine import ARENA_BYTES, Engine, EngineError, engine_version
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.kept_weights import KeptWeights
from edge_runtime.training.memory_plan import EVALUATION_BATCH, PlannedMemory, plan_memory
from edge_runtime.training.model import Model
from edge_runtime.training.optimizer import make_optimizer
from edge_runtime.training.ort_training_engine import OrtTrainingCache, OrtTrainingUnavailable
from edge_runtime.training.process_memory import peak_rss_bytes, rss_bytes
from edge_runtime.training.schedule import learning_rate
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.trainer import Trainer, TrainingOutcome, evaluate
from edge_runtime.training.weighting_state import WeightingState
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.errors import BundleInvalid, WireError
from edge_runtime.wire.files import atomic_file
from edge_runtime.wire.graph_cost import graph_cost
from edge_runtime.wire.messages import Training
from edge_runtime.wire.metrics import METRICS
from edge_runtime.wire.names import TaskName
from edge_runtime.wire.operators import check_graph_file
from edge_runtime.wire.tensors import TensorTable, Vector, transfer, unpack
from edge_runtime.wire.training import ProbeMethod, TrainingSettings

FAULTS: dict[type[Exception], int] = {
    WireError: BAD_INPUT,
    DatasetInvalid: BAD_INPUT,
    EngineError: BAD_INPUT,
    OrtTrainingUnavailable: BAD_INPUT,
    OSError: BAD_INPUT,
}


class LocalTraining(TrainingSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of `train`."""

    seed: Annotated[int, Meta(ge=0, le=2**53, description="the same seed gives the same weights, bit for bit")] = 0
    tasks: Annotated[tuple[TaskName, ...], Meta(description="tasks to train (default: all of the bundle)")] = ()
    probe: Annotated[ProbeMethod, Meta(description="how affinities are measured")] = "exact"
    probe_every: Annotated[
        int, Meta(ge=0, le=1_000_000, description="steps from one measurement of affinities to the next; 0 for never")
    ] = 0
    threads: Annotated[int, Meta(ge=0, le=1024, description="threads that compute; 0 for one for each core")] = 0

    def of_epoch(self, epoch: int) -> Training:
        """Return the settings of one epoch."""
        return Training(
            **self.optimization | {"lr": learning_rate(self.lr, epoch, self.epochs)},
            epochs=1,
            first_epoch=epoch,
            seed=self.seed,
            probe=self.probe,
            probe_every=self.probe_every,
            weighting=self.task_weighting,
        )


SETTINGS = settings_of(LocalTraining)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument("--bundle", type=Path, required=True, help="folder that `python -m export compile` wrote")
    parser.add_argument(
        "--data", type=Path, required=True, help="data set folder with train/ and optionally val/, test/"
    )
    parser.add_argument(
        "--engine",
        type=lambda text: "ort_training" if text == "official" else text,  # its name before
        choices=("portable", "ort_training"),
        default="portable",
        help="ort_training: the bundle's ONNX Runtime training artifacts, on onnxruntime-training (default portable)",
    )
    parser.add_argument(
        "--memory-budget",
        type=size,
        metavar="SIZE",
        help="the most memory that the process may take, such as 220MiB: the fastest way to train that stays below it "
        "(default: every stage recomputed, no micro-batches)",
    )
    parser.add_argument("--weights", type=Path, help="start from these weights instead of the bundle's")
    parser.add_argument(
        "--out", type=Path, help="write the trained weights here (.safetensors), after each epoch those of that epoch"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    parser.add_argument("--merging", dest="gradient_combination", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_flags(parser, SETTINGS)


def train(args: argparse.Namespace) -> int:
    """Train locally; return the exit code."""
    return run_command(partial(_train, args), FAULTS)


def _chosen(args: argparse.Namespace) -> LocalTraining:
    """Return the settings of the command line. Raises UsageError."""
    chosen = build(LocalTraining, [(COMMAND_LINE, of_flags(args, SETTINGS))]).value
    if chosen.task_weights and chosen.weighting != "fixed":
        raise UsageError(f"--task-weights: --weighting {chosen.weighting} learns its weights, so leave them out")
    return chosen


def _train(args: argparse.Namespace) -> int:
    chosen = _chosen(args)
    kept = KeptWeights(args.out)
    manifest, model, dataset, memory = _open(args, chosen, kept)
    if unknown := sorted(set(chosen.task_weights) - set(model.tasks)):
        raise UsageError(f"--task-weights: {unknown[0]!r} is not one of the tasks {', '.join(model.tasks)}")
    if empty := [task for task in model.tasks if not dataset.train.examples([task])]:
        raise UsageError(f"{dataset.train.file(empty[0])} is NaN throughout: leave {empty[0]} out with --tasks")
    for task in manifest.tasks:
        ignored = task.labels.ignored if task.labels is not None else ()
        text = imbalance_text(task.name, dataset.train.class_counts.get(task.name, ()), ignored)
        if text is not None:
            print(text, file=sys.stderr)
    epochs, step_ms = [], []
    state = np.zeros(make_optimizer(chosen.of_epoch(0)).table(model.table.parameters).size, np.float32)
    weighting_state, micro_batch = None, memory.plan.micro_batch if memory else None
    evaluation_batch = memory.evaluation_batch if memory else EVALUATION_BATCH
    for epoch in range(chosen.epochs):
        settings = chosen.of_epoch(epoch)
        trained, times_ms = timed_training(Trainer(model, dataset.train, micro_batch), settings, state, weighting_state)
        step_ms += times_ms
        weighting_state = trained.weighting_state
        if not all(map(math.isfinite, trained.loss.values())) or not np.isfinite(model.weights).all():
            raise UsageError(
                f"training diverged in epoch {epoch + 1}: a lower learning rate may help (--lr){kept.said}"
            )
        kept.keep(manifest.table, model.weights, epoch)
        val_loss, val_metrics = measured(model, dataset.val, evaluation_batch)
        affinity = trained.affinities.result()
        epochs.append(
            {
                "epoch": epoch,
                "lr": settings.lr,
                "train_loss": trained.loss,
                "val_loss": val_loss,
                "val_metrics": val_metrics,
                "affinity": affinity,
            }
        )
        if not args.json:
            print_epoch(epoch, trained.loss, val_loss, metrics_text(manifest, val_metrics))
    test_loss, test_metrics = measured(model, dataset.test, evaluation_batch)
    result = {
        "tasks": model.tasks,
        "metrics": {task.name: task.metric for task in manifest.tasks},
        "examples": len(dataset.train),
        "class_counts": dataset.train.class_counts,
        "seed": chosen.seed,
        "engine": engine_version() + (" ort_training" if args.engine == "ort_training" else ""),
        "epochs": epochs,
        "test_loss": test_loss,
        "test_metrics": test_metrics,
        "step_ms_median": statistics.median(step_ms),
        "peak_rss_bytes": peak_rss_bytes(),
        "memory": None if memory is None else memory.use,
    }
    if args.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(f"step {result['step_ms_median']:.1f} ms (median), peak memory {mib_text(peak_rss_bytes())}")
        if memory is not None and memory.predicted_bytes is not None:
            print(f"trained in {memory.plan}; {memory.predicted_bytes / 2**20:.0f} MiB were predicted")
    return DONE


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument("--model", type=Path, required=True, help="plain model that `python -m export deploy` wrote")
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="(default test)")
    parser.add_argument("--count", type=int, default=8, help="samples, from the first on (default 8)")
    parser.add_argument(
        "--out", type=Path, required=True, help=".npz with the inputs, and for each task its label and its predictions"
    )


def predict(args: argparse.Namespace) -> int:
    """Run a plain model, of allowed operators alone, over some samples; return the exit code."""
    return run_command(partial(_predict, args), FAULTS)


def _predict(args: argparse.Namespace) -> int:
    split = Dataset.open(args.data).splits[args.split]
    if split is None:
        raise DatasetInvalid(f"{args.data} has no {args.split} set")
    if args.count < 1:
        raise UsageError("--count must be at least 1")
    inputs, labels = split.batch(range(min(args.count, len(split))))
    graph_cost(check_graph_file(args.model, args.model.name), args.model.name, len(next(iter(inputs.values()))))
    found = Engine().load(args.model).call(inputs)
    arrays = dict(inputs)
    for name, prediction in found.items():
        arrays[f"prediction.{name}"] = prediction
        task = name.partition(".")[0]  # of several predictions, which have one label
        if task in labels:
            factor = split.factors.get(task)
            arrays[f"label.{task}"] = labels[task] if factor is None else convert(labels[task], "float32", factor)
    with atomic_file(args.out) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return DONE


def _open(
    args: argparse.Namespace, chosen: LocalTraining, kept: KeptWeights
) -> tuple[wire.Manifest, Model, Dataset, PlannedMemory | None]:
    whole = bundle_folder.read_folder(args.bundle)
    manifest, weights = _select(whole, args, chosen.tasks)
    kept.check(manifest.table, weights)
    dataset = Dataset.open(args.data)
    for split in (dataset.train, dataset.val, dataset.test):
        if split is not None:
            check_fits(manifest, split)
    memory = _planned(args, chosen, manifest, dataset)
    engine = Engine(chosen.threads or None, (memory and memory.arena_bytes) or ARENA_BYTES)
    graphs = GraphCache(engine).of(
        manifest, lambda name, _: bundle_folder.graph_path(args.bundle, name), memory.plan.micro_batch if memory else 1
    )
    step = None
    if args.engine == "ort_training":
        path = lambda group, _: bundle_folder.artifact_path(args.bundle, group, wire.TRAINING)  # noqa: E731
        step = OrtTrainingCache(engine).step(manifest, path)
    plan = memory.plan if memory else None
    saved, frozen = (plan.saved, plan.frozen) if plan else ((), 0)
    model = Model(manifest, graphs, weights, step, save_activations=saved, frozen=frozen)
    return manifest, model, dataset, memory


def _planned(
    args: argparse.Namespace, chosen: LocalTraining, manifest: wire.Manifest, dataset: Dataset
) -> PlannedMemory | None:
    """Plan the memory of training in the given budget. Raises BudgetTooSmall, BundleInvalid and UsageError."""
    if args.memory_budget is None:
        return None
    if args.engine == "ort_training":
        raise UsageError("--memory-budget: the engine ort_training does not plan its memory: leave out one of them")
    if manifest.footprint is None:
        raise BundleInvalid(f"{args.bundle} has no footprint, so no budget can be planned: compile it again")
    return plan_memory(
        manifest,
        chosen.of_epoch(0),
        budget_bytes=args.memory_budget,
        base_bytes=rss_bytes(),
        evaluates=dataset.val is not None or dataset.test is not None,
        predicts=True,
        samples=len(dataset.train),
    )


def _select(whole: wire.Manifest, args: argparse.Namespace, tasks: tuple[str, ...]) -> tuple[wire.Manifest, Vector]:
    """Return the manifest of the chosen tasks and the initial weights."""
    names = tuple(sorted(tasks)) if tasks else whole.task_names
    manifest = whole.group(names, whole.weights)
    if args.weights is not None:
        return manifest, unpack(manifest.table, args.weights.read_bytes())
    weights = unpack(whole.table, (args.bundle / bundle_folder.WEIGHTS).read_bytes())
    return manifest, transfer(TensorTable(whole.tensors), weights, manifest.table)


def timed_training(
    trainer: Trainer, settings: Training, state: Vector, weighting_state: WeightingState | None = None
) -> tuple[TrainingOutcome, list[float]]:
    """Train; return the outcome and the time of each step, ms. Raises EngineError."""
    clock = [time.perf_counter()]
    trained = trainer.train(
        settings, state, weighting_state=weighting_state, report=lambda *_: clock.append(time.perf_counter())
    )
    return trained, [1000 * (after - before) for before, after in pairwise(clock)]


def mib_text(value: int | None) -> str:
    """Return a size in MiB as text; None was not measured."""
    return "not measured" if value is None else f"{value / 2**20:.0f} MiB"


def measured(
    model: Model, split: Split | None, batch: int
) -> tuple[dict[str, float], dict[str, float]] | tuple[None, None]:
    """Return losses and metrics by task over a split; None without a split. Raises EngineError."""
    if split is None:
        return None, None
    metrics = TaskMetrics(model)
    return evaluate(model, split, batch, metrics=metrics), metrics.result()


def print_epoch(epoch: int, loss: dict[str, float], val_loss: dict[str, float] | None, more: str = "") -> None:
    """Print the losses of an epoch."""
    print(
        f"epoch {epoch + 1}: train {_losses(loss)}" + ("" if val_loss is None else f" · val {_losses(val_loss)}{more}"),
        flush=True,
    )


def metrics_text(manifest: wire.Manifest, values: dict[str, float] | None) -> str:
    """Return the text of metrics that follows losses; empty without any."""
    named = {task.name: METRICS[task.metric] for task in manifest.tasks if task.metric is not None}
    found = [(task, named[task], value) for task, value in (values or {}).items()]
    return "".join(f" · {task} {about.title} {value:.{about.decimals}f}" for task, about, value in found)


def _losses(loss: dict[str, float]) -> str:
    return f"{sum(loss.values()):.4f} (" + ", ".join(f"{task} {value:.4f}" for task, value in loss.items()) + ")"
