"""The gradient of a device's loss, and how fast it can change, for proximal methods.

The loss of a device is the sum over its samples, so that devices with more samples count for more.
"""

# coverage: every branch

import numpy as np

from edge_runtime.linear.losses import Array, Loss


def gradient(x: Array, y: Array, w: Array, loss: Loss) -> Array:
    """Return Σ_j ℓ'(w·x_j, y_j) x_j (d,)."""
    return x.T @ loss.slope(x @ w, y)


def smoothness(x: Array, loss: Loss) -> float:
    """Return the Lipschitz constant L of the gradient: the loss's bend times the largest squared singular value of X.

    Infinite for a loss with a corner.
    """
    small = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    return loss.bend * float(np.linalg.eigvalsh(small)[-1])
