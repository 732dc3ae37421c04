"""First-order affinity: what a small step on one task would do to the others, from inner products of gradients.

With g_i the encoder's gradient of task i, a step θ − lr · (g_i + decay · θ) changes L_j by −lr · ⟨g_i + decay · θ, g_j⟩
to first order, so that of the exact look-ahead (probe.py)

    S[i→j] ≈ (⟨g_i, g_j⟩ + decay · ⟨θ, g_j⟩) / L_j

with an error that falls with lr (Fifty et al., NeurIPS 2021, section 3). Two choices of g:
- the encoder's gradients: the formula as it stands. One backward pass for each task, all T gradients at hand at once.
- the representation's gradients ∂L_i/∂z, which a training step has computed anyway, without the weight decay: nearly
  free, but as if the encoder moved z by the same amount in every direction. The values have another scale and only
  their order is comparable.
"""

# coverage: every branch

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.optimizer import BLOCK

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
Row = NDArray[np.float64]


def pull(weights: Array, gradients: Sequence[Array], weight_decay: float) -> Row:
    """What weight decay adds for every source alike: decay · ⟨θ, g_j⟩, (T,); `weights` is as each gradient, (P,)."""
    totals = np.zeros(len(gradients))
    if weight_decay:
        scratch = np.empty(min(BLOCK, len(weights)), np.float64)
        for start in range(0, len(weights), BLOCK):
            part = slice(start, start + BLOCK)
            work = scratch[: len(weights[part])]
            for j, gradient in enumerate(gradients):
                np.multiply(weights[part], gradient[part], out=work, dtype=np.float64)
                totals[j] += work.sum()
    return totals * weight_decay


def first_order(inner: Matrix, losses: Sequence[float], pulls: Row | float = 0.0) -> Matrix:
    """S (T, T), values[i][j] being i→j, from inner products (T, T), losses (T,) and what decay adds (T,).

    A loss of zero (no labels in the batch) gives a column that is not finite.
    """
    before = np.asarray(losses, np.float64)
    column = np.where(before == 0, np.nan, before)  # (T,), by target
    values: Matrix = (inner + pulls) / column
    return values
