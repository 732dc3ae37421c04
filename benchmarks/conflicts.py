"""Why a rule of aggregation does what it does: one federation's rounds in this process, by several rules.

    python -m benchmarks.conflicts docs/experiments/fedbone.toml --bundle runs/fedbone/bundles/0 --seed 0

Devices have the tasks of the experiment's tasks_of and train as its settings say. What is said of each variant: the
test loss by task, how many pairs of the devices' changes conflict, how long the step is beside the plain mean's, and
how far apart the history's attention is. Beside the rules of server.toml there are GPAggregation without projection
(attention) and without history (projection).
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from broker_server.aggregation.fedavg import FedAvg, part_weight
from broker_server.aggregation.gpaggregation import cosines, softmax
from broker_server.rounds.losses import weighted_losses
from broker_server.simulation.experiment import Experiment, data_sets, read_experiment
from devices.cli.settings import put
from edge_runtime.datasets.dataset import Dataset, Split
from edge_runtime.training.engine import ARENA_BYTES, Engine
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Model
from edge_runtime.training.optimizer import make_optimizer
from edge_runtime.training.trainer import Trainer, evaluate
from edge_runtime.wire.bundle_folder import WEIGHTS, graph_path, read_folder
from edge_runtime.wire.conflict import cagrad, combine, gram, pcgrad, project
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import Vector, transfer, unpack

RULES = ("mean", "attention", "projection", "gpaggregation", "pcgrad", "cagrad")
POWER = 0.9
"""The warm-up of the learning rate's schedule, as everywhere."""


class DeviceReplica:
    """One device: its tasks' part of the model, its data and its optimizer's state."""

    def __init__(self, whole: Manifest, graphs: GraphCache, bundle: Path, data: Path, tasks: tuple[str, ...]) -> None:
        self.own = whole.group(tasks, whole.weights)
        self.graphs = graphs.of(self.own, lambda name, _: graph_path(bundle, name))
        dataset = Dataset.open(data)
        assert dataset.test is not None
        self.train, self.test = _only(dataset.train, tasks), _only(dataset.test, tasks)
        self.state: Vector | None = None

    def model(self, whole: Manifest, weights: Vector) -> Model:
        """The model with the weights that the device was given."""
        vector = transfer(whole.table, weights, self.own.table)
        return Model(self.own, self.graphs, vector, save_activations=(True,) * len(self.own.stages))

    def trained(self, whole: Manifest, weights: Vector, settings: Training) -> tuple[Vector, dict[str, int]]:
        """The weights after a round (P,), whole, and the examples by task."""
        model = self.model(whole, weights)
        if self.state is None:
            self.state = np.zeros(make_optimizer(settings).table(self.own.table.parameters).size, np.float32)
        Trainer(model, self.train).train(settings, self.state)
        found = weights.copy()
        views = whole.table.views(found)
        for name, values in self.own.table.views(model.weights).items():
            views[name][...] = values
        return found, self.train.examples(model.tasks)


def _only(split: Split, tasks: tuple[str, ...]) -> Split:
    return Split(inputs=split.inputs, labels={task: split.labels[task] for task in tasks}, factors=split.factors)


def run(experiment: Experiment, bundle: Path, seed: int, rule: str, server_lr: float) -> dict[str, Any]:
    """One federation by one rule."""
    config = experiment.config(next(iter(experiment.methods)), seed, 1)
    whole = read_folder(bundle)
    graphs = GraphCache(Engine(1, ARENA_BYTES))
    weights: Vector = np.array(unpack(whole.table, (bundle / WEIGHTS).read_bytes()))
    data = data_sets(Path(experiment.data), experiment.devices)
    tasks_of = {name: tuple(sorted(experiment.tasks_of.get(name, whole.task_names))) for name in data}
    devices = [DeviceReplica(whole, graphs, bundle, data[name], tasks_of[name]) for name in sorted(data)]
    where = whole.table.parts["encoder"]
    rounds = config.grouping.merged_rounds + config.grouping.split_rounds
    history: Vector | None = None
    conflicting, longer, spread = [], [], []
    for number in range(rounds):
        settings = msgspec.structs.replace(
            config.first_training,
            first_epoch=number * config.training.epochs,
            lr=config.training.lr * (1 - number / rounds) ** POWER,
            probe_every=0,
        )
        mean, changes, examples = FedAvg(whole.table), [], []
        for device in devices:
            vector, seen = device.trained(whole, weights, settings)
            mean.fold(vector, seen)
            changes.append(weights[where] - vector[where])
            examples.append(part_weight("encoder", seen))
        K = len(changes)  # noqa: N806
        inner = gram(changes if history is None else [*changes, history])
        factors = np.ones(K) if history is None or rule in {"mean", "projection"} else softmax(cosines(inner))
        inner, shares = inner[:K, :K], np.array(examples) / sum(examples)
        match rule:
            case "mean":
                counts = shares
            case "attention":
                counts = shares * factors
            case "pcgrad":
                counts = pcgrad(inner, shares, (seed, number))
            case "cagrad":
                counts = cagrad(inner, shares, config.aggregation.cagrad_c)
            case _:
                counts = shares @ project(inner * factors * factors[:, None]) * factors
        history = combine(changes, counts)
        new = mean.result(weights)
        plain = np.linalg.norm(weights[where] - new[where])
        conflicting.append(float((inner[np.triu_indices(K, 1)] < 0).mean()))
        longer.append(float(np.linalg.norm(history) / plain))
        spread.append(float(factors.max() / factors.min()))
        new[where] = weights[where] - np.float32(server_lr) * history
        weights = new
    tested = [(evaluate(model := d.model(whole, weights), d.test, 16), d.test.examples(model.tasks)) for d in devices]
    losses = weighted_losses(tested)
    return {
        "rule": rule,
        "server_lr": server_lr,
        "seed": seed,
        "test_loss": losses | {"total": sum(losses.values())},
        "pairs_in_conflict": float(np.mean(conflicting)),
        "first_and_last": [conflicting[0], conflicting[-1]],
        "step_beside_the_mean": float(np.mean(longer)),
        "attention_most_to_least": float(np.mean(spread)),
    }


def main() -> None:
    """Print a line of JSON for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(RULES))
    parser.add_argument("--server-lr", type=float, nargs="+", default=[1.0])
    parser.add_argument("--lr", type=float, help="instead of the experiment's")
    parser.add_argument("--clip-norm", type=float, help="instead of the experiment's")
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    args = parser.parse_args()
    experiment = read_experiment(args.experiment)
    settings = copy.deepcopy(experiment.settings)
    rounds = (None, None) if args.rounds is None else (args.rounds - 1, 1)
    for path, value in (
        (("training", "lr"), args.lr),
        (("training", "clip_norm"), args.clip_norm),
        (("grouping", "merged_rounds"), rounds[0]),
        (("grouping", "split_rounds"), rounds[1]),
    ):
        if value is not None:
            put(settings, path, value)
    experiment = msgspec.structs.replace(experiment, settings=settings)
    for server_lr in args.server_lr:
        for rule in args.rules:
            print(json.dumps(run(experiment, args.bundle, args.seed, rule, server_lr)), flush=True)


if __name__ == "__main__":
    main()
