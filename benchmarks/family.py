"""Linear models of related devices on public data, without messages: python -m benchmarks.family FOLDER.

FOLDER has har_hapt_features.npz and school.mat, which are not part of this project. Each method's λ is the best of a
grid on an inner split of the first seed's training samples; figures are means over seeds of 75/25 splits, by device for
HAR (error in %) and over all test samples for School (RMSE).
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.aggregation import covariance
from broker_server.aggregation.proximal_maps import Regulariser, proximal
from edge_runtime.datasets.feature_sets import Sets, divided, standardised
from edge_runtime.datasets.feature_sources import SOURCES
from edge_runtime.datasets.partition import Fractions
from edge_runtime.linear.dual import ascend, order_of, sum_of
from edge_runtime.linear.gradient import gradient, smoothness
from edge_runtime.linear.losses import LOSSES

Array = NDArray[Any]
Data = Sequence[tuple[Array, Array]]
Method = Callable[[Data, float], Array]
"""Weights (T, d) of the devices' training samples and λ."""
SEEDS = (0, 1, 2)
QUARTER = Fractions(val=0.0, test=0.25)
HINGE, SQUARED = LOSSES["hinge"], LOSSES["half_squared"]


def relationship(data: Data, ridge: float, *, rounds: int, every: int) -> Array:
    """Return MOCHA's weights; with every = 0 each device is for itself."""
    sigma = covariance.unrelated(len(data))
    b = np.zeros((len(data), data[0][0].shape[1]))
    alpha = [np.zeros(len(x)) for x, _ in data]
    for number in range(1, rounds + 1):
        w, rho = covariance.weights(b, sigma, ridge), covariance.separability(sigma)
        for t, (x, y) in enumerate(data):
            curvature = rho * float(sigma[t, t]) / ridge
            alpha[t] = ascend(x, y, alpha[t], w[t], HINGE, curvature, order_of(len(x), 1.0, (0, number)))
            b[t] = sum_of(x, alpha[t])
        if every and number % every == 0 and number < rounds:
            sigma = covariance.covariance(covariance.weights(b, sigma, ridge))
    return covariance.weights(b, sigma, ridge)


def proximal_steps(data: Data, ridge: float, regulariser: Regulariser) -> Array:
    """Return the weights of proximal multi-task learning after 600 steps with Nesterov's sequence."""
    bend = max(smoothness(x, SQUARED) for x, _ in data)
    w = ahead = np.zeros((len(data), data[0][0].shape[1]))
    pace = 1.0
    for _ in range(600):
        slopes = np.array([gradient(x, y, row, SQUARED) for (x, y), row in zip(data, ahead, strict=True)])
        new = proximal(regulariser, ahead - slopes / bend, ridge / bend)
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead, w, pace = new + (pace - 1) / faster * (new - w), new, faster
    return w


def ridge_regression(data: Data, ridge: float) -> Array:
    """Return the weights of each device for itself."""
    return np.array([np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y) for x, y in data])


def as_one(method: Method) -> Method:
    """Return a method of all samples as one device's."""

    def of_all(data: Data, ridge: float) -> Array:
        x, y = (np.concatenate([pair[which] for pair in data]) for which in (0, 1))
        return np.repeat(method([(x, y)], ridge), len(data), 0)

    return of_all


def error_percent(w: Array, sets: Sequence[Sets]) -> float:
    """Return the mean over devices of the share of wrong classes."""
    wrong = [np.mean((each["test"][0] @ row > 0) != (each["test"][1] > 0)) for row, each in zip(w, sets, strict=True)]
    return 100 * float(np.mean(wrong))


def rmse(w: Array, sets: Sequence[Sets]) -> float:
    """Return the root of the mean square over all test samples."""
    errors = [each["test"][0] @ row - each["test"][1] for row, each in zip(w, sets, strict=True)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


HAR: Mapping[str, tuple[Method, Sequence[float]]] = {
    "global": (as_one(lambda data, ridge: relationship(data, ridge, rounds=30, every=0)), (1e-2, 1e-3)),
    "local": (lambda data, ridge: relationship(data, ridge, rounds=15, every=0), (1e-2, 1e-3, 1e-4)),
    "mocha": (lambda data, ridge: relationship(data, ridge, rounds=30, every=5), (1e-2, 1e-3, 1e-4)),
}
SCHOOL: Mapping[str, tuple[Method, Sequence[float]]] = {
    "global": (as_one(ridge_regression), (1.0, 100.0)),
    "local": (ridge_regression, (0.3, 1.0, 3.0)),
    "proximal_mtl, trace": (lambda data, ridge: proximal_steps(data, ridge, "trace"), (30.0, 100.0, 300.0)),
    "proximal_mtl, mean": (lambda data, ridge: proximal_steps(data, ridge, "mean"), (1.0, 10.0, 100.0)),
}


def split(kind: str, file: Path, seed: int, *, inner: bool = False) -> list[Sets]:
    """Return the devices' sets; with `inner` the training samples alone, divided again."""
    source = SOURCES[kind]
    sets = divided(source.read(file, 3, 0), QUARTER, seed)
    if inner:
        sets = divided({name: each["train"] for name, each in sets.items()}, QUARTER, seed + 100)
    return list((standardised(sets) if source.standardised else sets).values())


def training(kind: str, sets: Sequence[Sets]) -> Data:
    """Return the training samples, classes as -1 and 1."""
    found = [each["train"] for each in sets]
    return [(x, np.where(y > 0, 1.0, -1.0) if kind == "har" else y.astype(float)) for x, y in found]


def measure(
    kind: str, file: Path, methods: Mapping[str, tuple[Method, Sequence[float]]], score: Callable[..., float]
) -> dict[str, Any]:
    """Return each method's λ and its scores by seed."""
    inner = split(kind, file, SEEDS[0], inner=True)
    found: dict[str, Any] = {}
    for name, (method, grid) in methods.items():
        tried = {ridge: score(method(training(kind, inner), ridge), inner) for ridge in grid}
        best = min(tried, key=lambda ridge: tried[ridge])
        scores = []
        for seed in SEEDS:
            sets = split(kind, file, seed)
            scores.append(round(score(method(training(kind, sets), best), sets), 3))
        found[name] = {"lambda": best, "scores": scores, "mean": round(float(np.mean(scores)), 3)}
        print(f"{kind:8}{name:24}{found[name]['mean']:8.3f}  λ = {best:g}  {scores}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/family.json"))
    options = parser.parse_args()
    found = {
        "har, error %": measure("har", options.folder / "har_hapt_features.npz", HAR, error_percent),
        "school, RMSE": measure("school", options.folder / "school.mat", SCHOOL, rmse),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
