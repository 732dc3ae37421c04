"""Proximal maps of matrices of weights (T, d), a row for each device: argmin over W of ½‖W - V‖² + τ R(W).

Source: Baytas, Yan, Jain, Zhou, "Asynchronous Multi-Task Learning", ICDM 2016; Argyriou, Evgeniou, Pontil 2008 (trace
norm), Obozinski, Taskar, Jordan 2010 (ℓ2,1).
"""

# coverage: every branch

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Regulariser = Literal["trace", "l21", "l1", "mean"]
"""Low rank; features that are chosen for all devices at once; sparse; every device near their mean."""


def proximal(regulariser: Regulariser, v: Array, tau: float) -> Array:
    """Return the proximal map of a regulariser at V (T, d), τ ≥ 0.

    The trace norm's is by the eigenvectors of the smaller of VVᵀ and VᵀV, so it takes O(T²d) where T < d.
    """
    match regulariser:
        case "trace":
            left = len(v) <= v.shape[1]
            values, vectors = np.linalg.eigh(v @ v.T if left else v.T @ v)
            singular = np.sqrt(np.maximum(values, 0.0))
            kept: Array = (vectors * np.maximum(0.0, 1 - tau / np.maximum(singular, 1e-300))) @ vectors.T
            return kept @ v if left else v @ kept
        case "l21":
            norms = np.linalg.norm(v, axis=0)  # (d,): of a feature, over all devices
            chosen: Array = v * np.maximum(0.0, 1 - tau / np.maximum(norms, 1e-300))
            return chosen
        case "l1":
            sparse: Array = np.sign(v) * np.maximum(0.0, np.abs(v) - tau)
            return sparse
        case _:
            mean: Array = v.mean(0)
            near: Array = mean + (v - mean) / (1 + 2 * tau)
            return near


def leading_pair(a: Array) -> tuple[Array, Array]:
    """Return the singular vectors (T,) and (d,) of the largest singular value of (T, d), by the smaller Gram matrix."""
    is_wide = len(a) <= a.shape[1]
    _, vectors = np.linalg.eigh(a @ a.T if is_wide else a.T @ a)
    first = vectors[:, -1]
    other = a.T @ first if is_wide else a @ first
    other /= max(float(np.linalg.norm(other)), 1e-300)
    return (first, other) if is_wide else (other, first)


def value(regulariser: Regulariser, w: Array) -> float:
    """Return R(W)."""
    match regulariser:
        case "trace":
            return float(np.linalg.svd(w, compute_uv=False).sum())
        case "l21":
            return float(np.linalg.norm(w, axis=0).sum())
        case "l1":
            return float(np.abs(w).sum())
        case _:
            return float(np.sum((w - w.mean(0)) ** 2))
