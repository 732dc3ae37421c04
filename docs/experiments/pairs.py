"""Two garments in one picture: six tasks of which three disturb the other three, with a known answer.

    python docs/experiments/pairs.py --out runs/pairs
    python -m broker_server simulate docs/experiments/pairs.toml --out runs/pairs-compare

Left above and right below lie two garments of Fashion-MNIST (Xiao et al., 2017), in 36 by 36 pixels, so that they
overlap (as MultiFashion: Lin et al., NeurIPS 2019). For each, the tasks are its class, its kind and its shape. An
encoder that is too narrow for both has to choose what it keeps: the tasks of one garment belong together. Devices
differ in the garments that they see. The files are those of Debian's package dataset-fashion-mnist.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_runtime.datasets.dataset import Description
from edge_runtime.datasets.dataset_writer import write_description, write_split
from export.losses import cross_entropy, l1
from export.model import MultiTaskModel

SOURCE = Path("/usr/share/datasets/fashion-mnist")
HIDDEN, WIDTH, SIZE, GARMENT = 48, 12, 36, 28
SIDES = ("left", "right")
KINDS = np.array([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])
"""Of the ten classes: tops, trousers, dresses, shoes, bags."""
HELD_OUT = 6
"""Of so many of the source's training pictures one is for validation, the last; its test pictures are for tests."""


def build():
    """Return a narrow encoder, 324 to 48 to 12, and six heads."""
    encoder = nn.Sequential(
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear((SIZE // 2) ** 2, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, WIDTH),
        nn.LayerNorm(WIDTH),
        nn.ReLU(),
    )
    heads, losses, targets = {}, {}, {}
    for side in SIDES:
        for name, classes in (("class", 10), ("kind", 5)):
            heads[f"{side}_{name}"] = _head(classes)
            losses[f"{side}_{name}"] = cross_entropy()
            targets[f"{side}_{name}"] = torch.randint(0, classes, (4,))
        heads[f"{side}_shape"] = _head(196, nn.Unflatten(1, (1, 14, 14)))
        losses[f"{side}_shape"] = l1
        targets[f"{side}_shape"] = torch.rand(4, 1, 14, 14)
    for layer in (module for part in (encoder, *heads.values()) for module in part if isinstance(module, nn.Linear)):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    image = torch.rand(4, 1, SIZE, SIZE)
    return MultiTaskModel(encoder=encoder, heads=heads, losses=losses, example_input=image, example_targets=targets)


def _head(outputs, *more):
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, outputs), *more)


def prepare(source, out, *, devices, counts, seed):
    """Write a data set for each device. Classes are dealt by Dirichlet(1) for each device and side."""
    random = np.random.default_rng(seed)
    train, test = _read(source, "train"), _read(source, "t10k")
    held_out = len(train[0]) // HELD_OUT
    pools = {
        "train": tuple(array[:-held_out] for array in train),
        "val": tuple(array[-held_out:] for array in train),
        "test": test,
    }
    for device in range(devices):
        folder = out / f"device_{device:02d}"
        chances = {side: random.dirichlet(np.ones(len(KINDS))) for side in SIDES}
        for split, count in counts.items():
            image, labels = _pairs(*pools[split], chances, count, random)
            write_split(folder / split, image, labels)
        write_description(
            folder, Description(name=folder.name, source="Fashion-MNIST, two in one picture", counts=counts)
        )
        print(folder)


def _read(source, name):
    """Return pictures (N, 28, 28) and classes (N,)."""
    with gzip.open(source / f"{name}-images-idx3-ubyte.gz") as file:
        pictures = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, GARMENT, GARMENT)
    with gzip.open(source / f"{name}-labels-idx1-ubyte.gz") as file:
        return pictures, np.frombuffer(file.read(), np.uint8, offset=8)


def _pairs(pictures, classes, chances, count, random):
    """Return images (count, 1, 36, 36) of two garments each, and their labels by task."""
    places = [np.flatnonzero(classes == each) for each in range(len(KINDS))]
    image, labels = np.zeros((count, SIZE, SIZE), np.uint8), {}
    for side in SIDES:
        drawn = random.choice(len(KINDS), count, p=chances[side])
        chosen = np.array([random.choice(places[each]) for each in drawn])
        at = 0 if side == "left" else SIZE - GARMENT
        window = image[:, at : at + GARMENT, at : at + GARMENT]
        np.maximum(window, pictures[chosen], out=window)
        labels[f"{side}_class"] = drawn.astype(np.int64)
        labels[f"{side}_kind"] = KINDS[drawn].astype(np.int64)
        halves = pictures[chosen].reshape(count, 1, 14, 2, 14, 2)
        labels[f"{side}_shape"] = (halves.mean((3, 5)) / 255).astype(np.float32)
    return image[:, None], labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write data sets of two garments in one picture.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="Fashion-MNIST's files (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--train", type=int, default=400, help="pictures of a device (default: %(default)s)")
    parser.add_argument("--val", type=int, default=80)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.source / "train-images-idx3-ubyte.gz").is_file():
        raise SystemExit(f"{args.source} has no Fashion-MNIST: install dataset-fashion-mnist, or give --source")
    sizes = {"train": args.train, "val": args.val, "test": args.test}
    prepare(args.source, args.out, devices=args.devices, counts=sizes, seed=args.seed)
