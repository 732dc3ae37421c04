"""The server of the mixed-effect model: the part that all devices share, from their statistics, in one exchange.

Source: Dinuzzo, Pillonetto, De Nicolao, IEEE TNN 2011 (arXiv 0812.4235); see edge_runtime.linear.mixed_effect.
"""

# coverage: every branch

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def packed(a: Array) -> Array:
    """Return the lower triangle of a symmetric (r, r), row by row: (r(r+1)/2,)."""
    return a[np.tril_indices(len(a))]


def unpacked(triangle: Array, size: int) -> Array:
    """Return the symmetric (r, r) with this lower triangle."""
    a = np.zeros((size, size))
    a[np.tril_indices(size)] = triangle
    return a + np.tril(a, -1).T


def shared_part(a_sum: Array, b_sum: Array, shared: float) -> Array:
    """Return v = (I/a + ΣA)⁻¹ Σb (r,) for `shared` = a > 0."""
    return np.asarray(np.linalg.solve(np.eye(len(b_sum)) / shared + a_sum, b_sum), np.float64)
