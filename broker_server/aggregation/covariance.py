"""Relations of tasks as a covariance Σ (T, T): the weights that they make, their penalty, and Σ learned from weights.

The problem is min over W and Σ ⪰ 0 with tr Σ = 1 of Σ_t mean ℓ(w_t·x, y) + λ/2 tr(WᵀΣ⁻¹W). Rows are tasks here: B and
W are (T, d), b_t = X_tᵀα_t/n_t, and W = ΣB/λ.

Source: Zhang, Yeung, "A Convex Formulation for Learning Task Relationships", UAI 2010; Liu, Pan, Ho, KDD 2017,
section 3.
"""

# coverage: every branch

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FLOOR = 1e-4
"""Added to WᵀW before its root, in parts of the largest eigenvalue: Σ then stays regular, and the result is that of a
problem with this floor: on the golden ones within one percent of the optimum without."""


def unrelated(tasks: int) -> Array:
    """Return I/T: no task knows anything of another."""
    return np.eye(tasks) / tasks


def weights(b: Array, sigma: Array, ridge: float) -> Array:
    """Return W = ΣB/λ (T, d)."""
    return sigma @ b / ridge


def covariance(w: Array, floor: float = FLOOR) -> Array:
    """Return Σ = (WWᵀ)^½ / tr of weights (T, d), with a floor; unrelated tasks where all weights are 0."""
    values, vectors = np.linalg.eigh(w @ w.T)
    largest = float(values[-1])
    if largest <= 0:
        return unrelated(len(w))
    roots = np.sqrt(np.maximum(values, 0.0) + floor * largest)
    sigma: Array = (vectors * roots) @ vectors.T
    sigma /= np.trace(sigma)
    return sigma


def separability(sigma: Array) -> float:
    """Return ρ = max_t Σ_s |σ_ts|/σ_tt: with it, steps that tasks take at once never overshoot together."""
    return float(np.max(np.abs(sigma).sum(1) / np.diag(sigma)))


def penalty(w: Array, sigma: Array, ridge: float) -> float:
    """Return λ/2 tr(WᵀΣ⁻¹W)."""
    return ridge / 2 * float(np.sum(w * np.linalg.solve(sigma, w)))


def misfit(w: Array, b: Array, sigma: Array, ridge: float) -> float:
    """Return the server's part of the duality gap: λ/2 ‖W - ΣB/λ‖² in the norm of Σ⁻¹, what rounding W leaves."""
    return penalty(w - weights(b, sigma, ridge), sigma, ridge)


def extended(sigma: Array, known: Sequence[str], devices: Sequence[str]) -> Array:
    """Return Σ of more devices, in their order: those that are new are unrelated to all others, and the trace stays 1.

    A device that is new takes 1/T of the trace.
    """
    place = [devices.index(name) for name in known]
    grown = unrelated(len(devices))
    grown[np.ix_(place, place)] = sigma * (len(known) / len(devices))
    return grown
