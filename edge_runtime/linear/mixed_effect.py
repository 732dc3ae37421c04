"""A client of the mixed-effect model: a part that all share, by features φ, and a private part by a kernel of its own.

f_t(x) = φ(x)·v + (1 - a) K̃(x, X_t) c_t. The client sends A = ΦᵀRΦ and b = ΦᵀRy once, with R = ((1 - a)K̃ + λI)⁻¹, and
gets v; its samples and its private part stay with it.

Source: Dinuzzo, Pillonetto, De Nicolao, "Client-server multi-task learning from distributed datasets", IEEE TNN 2011
(arXiv 0812.4235); the server's form with features on a disclosed basis is our own algebra of the same estimator.
"""

# coverage: every branch

from dataclasses import dataclass

import numpy as np

from edge_runtime.linear.losses import Array


def gaussian(x: Array, z: Array, width: float) -> Array:
    """Return exp(-‖x - z‖²/(2 width²)) of all pairs: (n, d) and (m, d) to (n, m)."""
    squares = (x**2).sum(1)[:, None] + (z**2).sum(1)[None] - 2 * x @ z.T
    similar: Array = np.exp(-np.maximum(squares, 0.0) / (2 * width**2))
    return similar


@dataclass(frozen=True, kw_only=True)
class MixedEffect:
    """The model's constants, the same on all clients: `shared` is a, from 0 (every client alone) to 1 (one model)."""

    shared: float
    ridge: float
    width: float

    def statistics(self, phi: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Return A (r, r) and b (r,) of features φ (n, r), inputs of the private kernel (n, d) and labels (n,)."""
        inner = self._inner(x)
        return phi.T @ np.linalg.solve(inner, phi), phi.T @ np.linalg.solve(inner, y)

    def coefficients(self, phi: Array, x: Array, y: Array, v: Array) -> Array:
        """Return the private coefficients c (n,), given the shared part v (r,)."""
        return np.asarray(np.linalg.solve(self._inner(x), y - phi @ v), np.float64)

    def predict(self, phi: Array, x: Array, v: Array, known: Array, coefficients: Array) -> Array:
        """Return predictions (m,) for features (m, r) and inputs (m, d), with the private part of `known` (n, d)."""
        return phi @ v + (1 - self.shared) * gaussian(x, known, self.width) @ coefficients

    def _inner(self, x: Array) -> Array:
        inner: Array = (1 - self.shared) * gaussian(x, x, self.width) + self.ridge * np.eye(len(x))
        return inner
