"""Priors on the weights of devices' heads: what holds each of them, given all others'.

For T devices with heads of P parameters each, W (T, P), a prior is a penalty on W. Seen from one device, with the
others as they are, it is a pull μ/2 · ‖w − c‖² with a centre c and a strength μ of its own, which a device adds to its
loss.

- deep_mocha    λ/2 · tr(Σ⁻¹WWᵀ), Σ being learned from W: MOCHA's and DMTRL's penalty on heads of networks. It is their
                honest generalisation: stragglers and relations stay, the dual and its certificate do not
- multilinear   λ/2 · vec(W)ᵀ(S_t ⊗ S_o ⊗ S_i)⁻¹vec(W) for each tensor of the heads, a covariance for each of its sides
"""

# coverage: every branch

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.tensors import TensorTable

Matrix = NDArray[np.float64]
FLOOR = 1e-4
"""Added to WWᵀ before its root, in parts of the largest eigenvalue: Σ then stays regular."""
EPSILON = 1e-3
"""Added to each covariance of a tensor normal prior, whose trace is 1."""
SWEEPS = 3
"""Flip-flops from unrelated sides to covariances that fit each other."""


class Prior(Protocol):
    """A seam: priors differ in where they pull."""

    def pulls(self, weights: Matrix, table: TensorTable, /) -> tuple[Matrix, Matrix]:
        """Return the centres (T, P) and strengths (T,) for weights (T, P), each row laid out by `table`."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskCovariance:
    """A covariance of the devices, learned from their weights: Σ = (WWᵀ)^½ / tr.

    w_t given the others is pulled to c_t = −Σ_s≠t Ω_ts w_s / Ω_tt with strength λΩ_tt, Ω being Σ⁻¹. Source: Zhang and
    Yeung, UAI 2010; Smith et al., NIPS 2017 (MOCHA), section 3.
    """

    strength: float

    def pulls(self, weights: Matrix, _table: TensorTable) -> tuple[Matrix, Matrix]:
        """Return the conditional means of the weights, and how sure they are."""
        precision = np.linalg.inv(task_covariance(weights @ weights.T)).astype(np.float64)
        sure = precision.diagonal().copy()
        centres: Matrix = weights - precision @ weights / sure[:, None]
        strengths: Matrix = self.strength * sure
        return centres, strengths


@dataclass(frozen=True, kw_only=True)
class TensorNormal:
    """Covariances of devices, outputs and inputs for each tensor of the heads. See tensor_normal.

    The pull has the penalty's gradient at the weights themselves, and the strength λ: a tensor's sides that hardly vary
    make the penalty so stiff that its own curvature could not be stepped against. Source: Long, Cao, Wang, Yu,
    "Learning Multiple Tasks with Multilinear Relationship Networks", NIPS 2017.
    """

    strength: float

    def pulls(self, weights: Matrix, table: TensorTable) -> tuple[Matrix, Matrix]:
        """Return weights less the penalty's gradient / λ."""
        centres = weights.copy()
        for tensor in table.tensors:
            where = slice(tensor.offset, tensor.offset + tensor.size)
            outputs = tensor.shape[0] if tensor.shape else 1
            sides = weights[:, where].reshape(len(weights), outputs, -1)
            centres[:, where] -= precise(sides, *fitted(sides)).reshape(len(weights), -1)
        return centres, np.full(len(weights), self.strength)


def task_covariance(inner: Matrix, floor: float = FLOOR) -> Matrix:
    """Return Σ = (WWᵀ)^½ / tr from the inner products WWᵀ (T, T); unrelated tasks where all weights are 0."""
    values, vectors = np.linalg.eigh(inner)
    if values[-1] <= 0:
        return np.eye(len(inner)) / len(inner)
    root = (vectors * np.sqrt(np.maximum(values, 0) + floor * values[-1])) @ vectors.T
    sigma: Matrix = root / np.trace(root)
    return sigma


def fitted(weights: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return the covariances of the sides of weights (T, O, I) after some flip-flops from unrelated ones."""
    tasks, outputs, inputs = (np.eye(size) / size for size in weights.shape)
    for _ in range(SWEEPS):
        tasks, outputs, inputs = flip_flop(weights, tasks, outputs, inputs)
    return tasks, outputs, inputs


def flip_flop(weights: Matrix, tasks: Matrix, outputs: Matrix, inputs: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return better covariances of the sides of weights (T, O, I), all three from those that are given.

    S_t = W_(t)(S_o ⊗ S_i)⁻¹W_(t)ᵀ / (O · I) + εI, trace 1, and so on.
    """
    found = []
    for axis, sides in enumerate(((None, outputs, inputs), (tasks, None, inputs), (tasks, outputs, None))):
        unfolded = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
        whitened = np.moveaxis(_solved(weights, sides), axis, 0).reshape(weights.shape[axis], -1)
        side = whitened @ unfolded.T / unfolded.shape[1] + EPSILON * np.eye(len(unfolded))
        found.append(side / np.trace(side))
    return found[0], found[1], found[2]


def precise(weights: Matrix, tasks: Matrix, outputs: Matrix, inputs: Matrix) -> Matrix:
    """Return (S_t ⊗ S_o ⊗ S_i)⁻¹ vec(W) as a tensor (T, O, I): half the gradient of vec(W)ᵀ(…)⁻¹vec(W)."""
    return _solved(weights, (tasks, outputs, inputs))


def _solved(weights: Matrix, sides: tuple[Matrix | None, ...]) -> Matrix:
    for axis, side in enumerate(sides):
        if side is not None:
            unfolded = np.moveaxis(weights, axis, 0)
            solved = np.linalg.solve(side, unfolded.reshape(len(unfolded), -1)).reshape(unfolded.shape)
            weights = np.moveaxis(solved.astype(np.float64), 0, axis)
    return weights
