"""The loss of predicting a constant on some data sets: a trained model has to be below it.

    python -m benchmarks.constants runs/rooms8-32 --tasks depth,edge_texture,keypoints,normals,segmentation

The constant is the best one on the training images: the median of each channel for L1 losses, the classes' frequencies
for segmentation (class 0 is ignored). The loss is that of the comparison: the mean over test images, devices together.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from edge_runtime.datasets.dataset import Dataset, convert

CLASSES = "segmentation"


def constant_loss(folders: list[Path], task: str) -> float:
    """The test loss of the best constant prediction of one task."""
    splits = [(Dataset.open(folder).train, Dataset.open(folder).test) for folder in folders]
    train = [split.labels[task] for split, _ in splits]
    test = [split.labels[task] for _, split in splits if split is not None]
    if task == CLASSES:
        counts = np.bincount(np.concatenate([labels.reshape(-1) for labels in train]).astype(np.int64))
        counts[0] = 0
        chances = counts / counts.sum()
        found = np.concatenate([labels.reshape(-1) for labels in test]).astype(np.int64)
        found = found[found > 0]
        return float(-np.log(np.maximum(chances[found], 1e-12)).mean())
    factor = splits[0][0].factors.get(task)
    known = np.concatenate([convert(labels, "float32", factor) for labels in train])  # (N, C, H, W)
    middle = np.nanmedian(known, axis=(0, 2, 3), keepdims=True)
    return float(np.nanmean(np.abs(np.concatenate([convert(labels, "float32", factor) for labels in test]) - middle)))


def main() -> None:
    """Print the floors as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", required=True, type=lambda text: text.split(","))
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.data.glob("*/train"))
    losses = {task: constant_loss(folders, task) for task in args.tasks}
    print(json.dumps(losses | {"total": sum(losses.values())}, indent=1))


if __name__ == "__main__":
    main()
