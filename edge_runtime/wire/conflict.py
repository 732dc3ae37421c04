# ruff: noqa: N803, N806  (K is the number of gradients, as in the papers)
"""Combination of conflicting gradients: of tasks on a device, of clients on the server.

Two gradients conflict where their inner product is negative. Every rule here gives a combined gradient Σ c_i · g_i, and
the coefficients c (K,) depend on the inner products of the gradients alone. So a rule is a pure function of the Gram
matrix (K, K), whatever the gradients' length; they are read twice, for their inner products and for the sum, in blocks
and in float64. `shares` (K,) are the gradients' weights: ones for a sum, n_k / Σ n for a mean.

- projection (PCGrad): each gradient loses its components against the others
- CAGrad: near the weighted mean, the direction in which the gradient that gains least gains most

Where nothing conflicts, projection changes nothing: the coefficients are the shares, exactly.
"""

# coverage: every branch

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
Row = NDArray[np.float64]

BLOCK = 16_384
"""Elements of each gradient that are in float64 at once."""
SMOOTH = 1e-4
"""CAGrad's norm ‖g_w‖ is √(‖g_w‖² + ε²), ε being this part of the longest gradient's norm: it always has a slope."""
GAP = 1e-8
"""CAGrad's weights are as good as this, in parts of the longest gradient's squared norm."""
LEAST_STEP = 1e-6
"""A step of Newton's method that has to be shorter is at the end of what rounding allows."""


def gram(vectors: Sequence[Array]) -> Matrix:
    """Return the inner products ⟨g_i, g_j⟩, (K, K), of K arrays of one size, summed in float64."""
    flat = [vector.reshape(-1) for vector in vectors]
    K, size = len(flat), flat[0].size
    total = np.zeros((K, K))
    rows = np.empty((K, min(BLOCK, size)), np.float64)
    for start in range(0, size, BLOCK):
        block = rows[:, : min(BLOCK, size - start)]
        for i, vector in enumerate(flat):
            block[i] = vector[start : start + BLOCK]
        total += block @ block.T  # (K, K)
    return total


def combine(vectors: Sequence[Array], coefficients: Row) -> Array:
    """Return Σ c_i · g_i (P,) of K vectors (P,), summed in float64 in their order."""
    size = len(vectors[0])
    result = np.empty(size, np.float32)
    for start in range(0, size, BLOCK):
        part = slice(start, start + BLOCK)
        total = np.zeros(len(result[part]), np.float64)
        for vector, factor in zip(vectors, coefficients, strict=True):
            total += vector[part] * np.float64(factor)
        result[part] = total
    return result


@np.errstate(over="ignore", invalid="ignore")  # training that diverges shows in its losses and weights
def project(inner: Matrix, orders: Sequence[Sequence[int]] | None = None) -> Matrix:
    """Return the coefficients C (K, K) of the projected gradients g_i' = Σ_j C_ij · g_j, from inner products (K, K).

    For each other j, in the order orders[i], by default ascending, where g_i' · g_j < 0:

        g_i' ← g_i' − (g_i' · g_j / ‖g_j‖²) · g_j

    with g_j as it was before any projection. So g_i' · g_j is not negative for the last j that was met, and for a
    single pair in both directions; of three and more, a later projection can bring back a conflict with an earlier one,
    and the result depends on the order. Row i of C is that of the unit matrix, exactly, where g_i conflicts with none.
    """
    K = len(inner)
    found = np.eye(K)
    for i in range(K):
        products = inner[i].copy()  # g_i' · g_j, (K,)
        for j in range(K) if orders is None else orders[i]:
            if j != i and products[j] < 0 < inner[j, j]:
                along = products[j] / inner[j, j]
                found[i, j] -= along
                products -= along * inner[j]
    return found


def pcgrad(inner: Matrix, shares: Row, seed: Sequence[int]) -> Row:
    """Return the coefficients of Σ shares_i · g_i', each gradient projected against the others in an order of its own.

    The orders are drawn from the `seed`; otherwise as `project`. Source: PCGrad (Yu et al., NeurIPS 2020, algorithm 1).
    """
    random = np.random.default_rng(list(seed))
    orders = [random.permutation(len(inner)).tolist() for _ in range(len(inner))]
    coefficients: Row = shares @ project(inner, orders)
    return coefficients


def cagrad(inner: Matrix, shares: Row, c: float) -> Row:
    """Return the coefficients of Σ shares · d, where d helps the gradient that gains least, near the weighted mean.

    With g_0 the mean of the gradients, weighted by their shares,

        d = argmax_d min_i ⟨g_i, d⟩  with  ‖d − g_0‖ ≤ c · ‖g_0‖,  0 ≤ c < 1
          = g_0 + c · ‖g_0‖ · g_w / ‖g_w‖,  g_w = Σ w_i · g_i

    and w the weights (w_i ≥ 0, Σ w_i = 1) that minimise ⟨g_w, g_0⟩ + c · ‖g_0‖ · ‖g_w‖. So d is up to 1 + c times as
    long as g_0, and with c = 0 it is g_0. The order of the gradients does not matter, but for rounding. A gradient of
    zeros has nothing to gain and is passed over; with fewer than two others the coefficients are the shares. Source:
    CAGrad (Liu et al., NeurIPS 2021, section 3.1), whose shares are equal; here ‖g_w‖ is smoothed (SMOOTH), so that
    gradients that can cancel to nothing have a d as well.
    """
    coefficients = shares.copy()
    there = np.flatnonzero(inner.diagonal() > 0)
    if len(there) < 2 or not np.isfinite(inner).all():
        return coefficients
    G = inner[np.ix_(there, there)]
    G /= G.diagonal().max()
    mean = shares[there] / shares.sum()
    length = c * np.sqrt(max(0.0, mean @ G @ mean))
    w = _worst_off(G, G @ mean, length)
    coefficients[there] += shares.sum() * length / np.sqrt(w @ G @ w + SMOOTH**2) * w
    return coefficients


def _worst_off(G: Matrix, b: Row, length: float) -> Row:
    """Return the weights w (K,) of the simplex that minimise b · w + length · √(w · Gw + SMOOTH²), which is convex.

    Newton's method with a logarithmic barrier of falling height (Boyd and Vandenberghe, 2004, section 11.3). The
    remaining gain at the end is about GAP.
    """
    K = len(b)
    w, height = np.full(K, 1 / K), 0.1
    system, right = np.ones((K + 1, K + 1)), np.zeros(K + 1)
    system[K, K] = 0  # the last row and column keep Σ w = 1

    def value(w: Row) -> float:
        return float(b @ w + length * np.sqrt(w @ G @ w + SMOOTH**2) - height * np.log(w).sum())

    while height * K > GAP:
        Gw = G @ w  # (K,)
        norm = np.sqrt(w @ Gw + SMOOTH**2)
        right[:K] = height / w - b - length * Gw / norm
        system[:K, :K] = length * (G / norm - np.outer(Gw, Gw) / norm**3) + np.diag(height / w**2)
        step = np.linalg.solve(system, right)[:K]
        gain = float(right[:K] @ step)
        t = min(1.0, 0.99 / max(float((-step / w).max()), 1e-9))  # inside the simplex
        while t > LEAST_STEP and value(w + t * step) > value(w) - 0.25 * t * gain:
            t /= 2
        w = w + t * step
        if gain <= 1e-3 * height or t <= LEAST_STEP:
            height /= 10
    w /= w.sum()
    return w
