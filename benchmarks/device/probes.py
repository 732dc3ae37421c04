"""Affinity probes: what each method costs, and how far their rankings of the pairs of tasks agree.

WorkCosts are CPU time of one thread, the least of some repeats, so they hardly depend on what else the machine does.
Affinities depend on neither: a probe never changes training, so all methods see the same weights and batches.
"""

import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import XCEPTION, bundle, rooms
from broker_server.grouping.search import search
from broker_server.strategies.settings import Grouping
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.training.encoder import Representation
from edge_runtime.training.engine import Engine
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Model, OnTaskGradient
from edge_runtime.training.optimizer import Sgd
from edge_runtime.training.probe import AffinityStatistics, Probe
from edge_runtime.training.schedule import batches, learning_rate, order
from edge_runtime.training.trainer import load
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.tensors import unpack
from edge_runtime.wire.training import ProbeMethod

METHODS: tuple[ProbeMethod, ...] = ("exact", "encoder", "representation")
MODELS = {"five tasks": ("build", 4), "nine tasks": ("build_nine", 2)}
"""The model's function, and how many buildings train it."""
PLANS = {"kept": True, "recomputed": False}
"""The plans of a device with enough memory, and of one whose memory is short."""
REPEATS = 8
LR, EPOCHS, EVERY = 0.05, 3, 5
"""Training for the affinities: the demo's learning rate; the number of batches from probe to probe."""
BATCH, DECAY = 16, 1e-4
Matrix = NDArray[np.float64]


def measure() -> dict[str, Any]:
    """Costs for both models; affinities of each building's own training, five tasks and nine."""
    data = sorted(folder for folder in rooms(max(number for _, number in MODELS.values())).iterdir() if folder.is_dir())
    every = Grouping().probe_every
    found: dict[str, Any] = {"probe_every": every, "batch": BATCH, "epochs": EPOCHS, "probed_every": EVERY}
    for name, (function, buildings) in MODELS.items():
        folder, _ = bundle(f"{XCEPTION}:{function}")
        found[name] = {}
        for plan, keep in PLANS.items():
            cost = costs(folder, data[0], keep=keep)
            shares = {method: cost[method] / (every + cost[method]) for method in METHODS}
            found[name][plan] = {"cost_steps": cost, "share_of_training": shares}
        found[name] |= agreement(folder, affinities(folder, data[:buildings]))
        print(f"{name}: {found[name]}", flush=True)
    return found


def opened(folder: Path, *, keep: bool = False) -> Model:
    """A bundle's model with its initial weights, on one thread; `keep`: its stages keep their activations."""
    manifest = bundle_folder.read_folder(folder)
    graphs = GraphCache(Engine(1)).of(manifest, lambda name, _: bundle_folder.graph_path(folder, name))
    weights = unpack(manifest.table, (folder / bundle_folder.WEIGHTS).read_bytes())
    return Model(manifest, graphs, weights, save_activations=(keep,) * len(manifest.stages))


def costs(folder: Path, data: Path, *, keep: bool) -> dict[ProbeMethod, float]:
    """The CPU time of a probe by each method, in training steps of the same batch."""
    model, split = opened(folder, keep=keep), Dataset.open(data).train
    x, targets = load(model, split, range(BATCH))
    done, kept = model.forward(x), dict[str, Representation]()
    losses, _ = model.run_heads(done.z, targets, None, keeper(kept))
    found: dict[ProbeMethod, float] = {}
    step_s = cpu_s(lambda: model.learn(x, targets))
    for method in METHODS:
        probe = Probe(method=method, lr=LR, weight_decay=DECAY)
        found[method] = cpu_s(partial(probe.measure, model, done, targets, losses, kept)) / step_s
    return found


def cpu_s(work: Callable[[], object]) -> float:
    """The least CPU time of some repeats, after one to load the graphs."""
    work()
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def affinities(folder: Path, data: list[Path]) -> dict[ProbeMethod, list[Matrix]]:
    """The mean matrix by each method of each building in each of its epochs, on the same batches."""
    found: dict[ProbeMethod, list[Matrix]] = {method: [] for method in METHODS}
    for building in data:
        model, split = opened(folder), Dataset.open(building).train
        velocity = np.zeros_like(model.gradient)
        for epoch in range(EPOCHS):
            lr = learning_rate(LR, epoch, EPOCHS)
            sgd = Sgd(lr=lr, momentum=0.9, weight_decay=DECAY)
            means = {method: AffinityStatistics(model.tasks) for method in METHODS}
            for step, chosen in enumerate(batches(order(0, epoch, len(split)), BATCH)):
                model.reseed(0, epoch, step)
                x, targets = load(model, split, chosen.tolist())
                done, kept = model.forward(x), dict[str, Representation]()
                losses, total = model.run_heads(done.z, targets, None, keeper(kept))
                for method in METHODS if step % EVERY == 0 else ():
                    probe = Probe(method=method, lr=lr, weight_decay=DECAY)
                    means[method].add(probe.measure(model, done, targets, losses, kept))
                model.backward(done, total)
                sgd.step(model.parameters, model.gradient, velocity)
            for method in METHODS:
                measured = means[method].result()
                assert measured is not None
                found[method].append(np.array(measured.mean))
            print(f"  {building.name}, epoch {epoch + 1} of {EPOCHS}: {sum(losses.values()):.3f}", flush=True)
    return found


def keeper(kept: dict[str, Representation]) -> OnTaskGradient:
    """Keeps each task's gradient at the representation."""

    def keep(task: str, _: float, dz: Representation) -> None:
        kept[task] = tuple(map(np.copy, dz))

    return keep


def agreement(folder: Path, matrices: dict[ProbeMethod, list[Matrix]]) -> dict[str, Any]:
    """Spearman's rank correlation of each method with the exact one over ordered pairs, and the splits."""
    tasks = bundle_folder.read_folder(folder).task_names
    means = {method: np.mean(found, axis=0) for method, found in matrices.items()}
    exact = matrices["exact"]
    halves = [np.mean(exact[half::2], axis=0) for half in (0, 1)]
    found: dict[str, Any] = {"of_exact_with_itself": spearman(*halves)}
    for method in METHODS[1:]:
        single = [spearman(a, b) for a, b in zip(exact, matrices[method], strict=True)]
        found[method] = {
            "of_means": spearman(means["exact"], means[method]),
            "of_one_round": {"median": float(np.median(single)), "min": min(single), "max": max(single)},
        }
    split = {
        str(groups): {
            method: ["+".join(g) for g in search(tasks, means[method], groups, "exactly").groups] for method in METHODS
        }
        for groups in (2, 3)
    }
    return {"spearman": found, "splits": split, "epochs_of_buildings": len(exact)}


def spearman(one: Matrix, other: Matrix) -> float:
    """Spearman's rank correlation over the pairs off the diagonal."""
    pairs = ~np.eye(len(one), dtype=bool)
    ranks = [np.argsort(np.argsort(matrix[pairs])) for matrix in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def document(result: dict[str, Any]) -> str:
    """Cost and agreement by method."""
    about = (
        f"The small Xception (width 0.25, 64 px, batch {result['batch']}) on the rendered rooms, one thread. A probe's "
        "cost is its CPU time relative to that of a training step, the least of some repeats, where the encoder's "
        "stages keep their activations, as on a device that has the memory (in brackets: where all are recomputed); "
        "its share "
        f"is that of the training time with one probe in {result['probe_every']} batches, the server's default. Rank "
        "correlation "
        f"is Spearman's with the exact look-ahead over ordered pairs of tasks: buildings train {result['epochs']} "
        f"epochs, each for itself, and every {result['probed_every']}th batch is probed by all "
        "methods; *all* compares the means over everything, *one round* single epochs of one building (median, least "
        "and largest)."
    )
    lines = [
        "## Affinity probes: `python -m benchmarks.device probes`",
        "",
        textwrap.fill(about, 120),
        "",
        "| | method | one probe, in steps | share of training | rank correlation, all | one round |",
        "|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        figures = result[name]
        for method in METHODS:
            agrees = figures["spearman"].get(method)
            single = agrees and agrees["of_one_round"]
            ranks = (
                f"{agrees['of_means']:.2f} | {single['median']:.2f} ({single['min']:.2f} to {single['max']:.2f})"
                if agrees
                else "1 | 1"
            )
            cost, again = (figures[plan]["cost_steps"][method] for plan in PLANS)
            share, other = (100 * figures[plan]["share_of_training"][method] for plan in PLANS)
            lines.append(f"| {name} | {method} | {cost:.4f} ({again:.4f}) | {share:.3f} % ({other:.3f} %) | {ranks} |")
    for name in MODELS:
        figures = result[name]
        said = (
            f"{name.capitalize()}, {MODELS[name][1]} buildings: the exact means of every other epoch correlate with "
            f"those of the rest by {figures['spearman']['of_exact_with_itself']:.2f}. The best split into two and "
            "three groups by method:"
        )
        lines += ["", textwrap.fill(said, 120), ""]
        for groups, by_method in figures["splits"].items():
            lines += [f"- {groups}, {method}: " + " · ".join(by_method[method]) for method in METHODS]
    return "\n".join(lines)
