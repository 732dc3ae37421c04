"""The family's golden values: inputs of four tasks, and what reference code and dense solvers make of them."""

from pathlib import Path

import msgspec
import numpy as np

FOLDER = Path(__file__).parent / "fixtures" / "family"


def golden(name):
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes())


PROBLEM = golden("problem_small")
X = [np.array(x) for x in PROBLEM["X"]]
CLASSES = [np.array(y, float) for y in PROBLEM["y_class"]]
VALUES = [np.array(y, float) for y in PROBLEM["y_regression"]]


def by_task(w):
    """Weights (T, d) of a golden (d, T)."""
    return np.array(w).T


def write_data(folder, task, y, x, inputs="features"):
    """A data set of features for one device, train and test alike."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        np.save(folder / split / "features.npy", x.astype(np.float32))
        np.save(folder / split / f"{task}.npy", y)
    (folder / "dataset.json").write_bytes(msgspec.json.encode({"inputs": [inputs]}))
    return folder
