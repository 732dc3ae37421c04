"""The peak memory of training: a few steps of a bundle by a plan, on random data, as a process of its own.

`python -m benchmarks.train_peak BUNDLE --batch 8 --micro 2 --keep 0110` prints what was resident before the first graph
was loaded, and the peak, as JSON. Both are what a device measures of itself.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from edge_runtime.datasets.dataset import Split
from edge_runtime.training.engine import ARENA_BYTES, Engine
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Model
from edge_runtime.training.optimizer import make_optimizer
from edge_runtime.training.process_memory import peak_rss_bytes, restart_peak, rss_bytes
from edge_runtime.training.trainer import Trainer
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import unpack

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--micro", type=int, help="samples in a run; default: the batch")
    parser.add_argument("--frozen", type=int, default=0, help="first stages that are not trained")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--keep", default="", help="for each stage of the encoder 1 or 0; default: none is kept")
    parser.add_argument("--arena", type=int, default=ARENA_BYTES, help="bytes that the engine's arena begins with")
    args = parser.parse_args()
    manifest = bundle_folder.read_folder(args.bundle)
    split = random_split(manifest, args.batch)
    base = rss_bytes()
    restart_peak()
    weights = unpack(manifest.table, (args.bundle / bundle_folder.WEIGHTS).read_bytes())
    graphs = GraphCache(Engine(2, args.arena)).of(manifest, lambda name, _: bundle_folder.graph_path(args.bundle, name))
    model = Model(manifest, graphs, weights, save_activations=[digit == "1" for digit in args.keep], frozen=args.frozen)
    del weights
    settings = Training(
        epochs=STEPS,
        first_epoch=0,
        batch=args.batch,
        lr=1e-4,
        momentum=0.9,
        weight_decay=1e-4,
        seed=0,
        probe_every=0,
        optimizer=args.optimizer,
    )
    table = make_optimizer(settings).table(manifest.table.parameters)
    Trainer(model, split, args.micro).train(settings, np.zeros(table.size, np.float32))
    print(json.dumps({"base_bytes": base, "peak_bytes": peak_rss_bytes()}))


def random_split(manifest: wire.Manifest, images: int) -> Split:
    """Return random images as a data set holds them, with labels of every task."""
    generator = np.random.default_rng(0)
    labels = {}
    for task in manifest.tasks:
        shape = (images, *task.target.shape)
        if task.target.dtype == "int64":
            labels[task.name] = generator.integers(0, 2, shape, np.uint8)
        else:
            labels[task.name] = generator.random(shape, np.float32)
    assert manifest.input is not None
    shape = (images, *manifest.input.shape)
    return Split(inputs={"image": generator.integers(0, 256, shape, np.uint8)}, labels=labels)


if __name__ == "__main__":
    main()
