"""A device's part of dual coordinate ascent over tasks' relations (DMTRL, MOCHA), and of its certificate.

A device t has features X (n, d), labels y (n,) and dual variables α (n,), which it never sends; b = Xᵀα/n is what the
server knows of them, and w = (BΣ)_t/λ what it makes of all devices' b.

Source: Liu, Pan, Ho, KDD 2017, section 3; Smith, Chiang, Sanjabi, Talwalkar, "Federated Multi-Task Learning", NIPS
2017.
"""

# coverage: every branch

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.linear.losses import Array, Loss

Indices = NDArray[np.int64]


def sum_of(x: Array, alpha: Array) -> Array:
    """Return b = Xᵀα/n (d,)."""
    return x.T @ alpha / len(x)


def ascend(x: Array, y: Array, alpha: Array, w: Array, loss: Loss, curvature: float, order: Iterable[int]) -> Array:
    """Return new dual variables (n,) after a step on each sample of `order`, one after another.

    `w` (d,) are the weights that the server has made of `alpha` and the others' b, and `curvature` is ρσ_tt/λ: how much
    of a change of b comes back to w at most. A sample whose features are all zero is left as it is.
    """
    n = len(x)
    alpha = alpha.copy()
    answered = w.astype(np.float64)  # (d,): w + curvature · Δb, with the steps so far
    kappas = curvature / n * np.einsum("nd,nd->n", x, x)
    for j in order:
        if kappas[j] > 0:
            new = loss.step(float(alpha[j]), float(y[j]), float(x[j] @ answered), float(kappas[j]))
            answered += (curvature / n * (new - alpha[j])) * x[j]
            alpha[j] = new
    return alpha


def local_gap(x: Array, y: Array, alpha: Array, w: Array, loss: Loss) -> float:
    """Return a device's part of the duality gap: mean ℓ(w·x, y) + mean ℓ*(-α) + w·b, which is never below 0.

    The parts of all devices and the server's (covariance.misfit) are the gap of the whole problem, exactly, whatever
    was rounded on the way, because every part is an inequality of its own (Fenchel-Young).
    """
    z = x @ w
    return float(np.mean(loss.value(z, y) + loss.conjugate(alpha, y) + alpha * z))


def order_of(n: int, passes: float, seed: tuple[int, ...]) -> Indices:
    """Return the samples of `passes` passes over n, each in an order of its own: ⌊passes · n⌋ steps."""
    rng = np.random.default_rng(seed)
    steps = int(passes * n)
    whole = [rng.permutation(n) for _ in range(-(-steps // n) if n else 0)]
    return np.concatenate([np.empty(0, np.int64), *whole])[:steps].astype(np.int64)
