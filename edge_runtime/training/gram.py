"""First-order affinity: the effect of a small step on one task on the others, from inner products of gradients.

With g_i the encoder's gradient of task i, a step θ − lr · (g_i + decay · θ) changes L_j by −lr · ⟨g_i + decay · θ, g_j⟩
to first order. The exact look-ahead (probe.py) is then

    S[i→j] ≈ (⟨g_i, g_j⟩ + decay · ⟨θ, g_j⟩) / L_j

with an error that falls with lr (Fifty et al., NeurIPS 2021, section 3). Two choices of g:
- the encoder's gradients: the formula as it stands. One backward pass for each task, with all T gradients in memory.
- the representation's gradients ∂L_i/∂z, which a training step has already computed, without the weight decay. This is
  nearly free, but assumes that the encoder moves z by the same amount in every direction. The values have another
  scale; only their order is comparable.
"""

# coverage: every branch

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.encoder import Representation
from edge_runtime.training.optimizer import BLOCK
from edge_runtime.wire.conflict import gram

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
Row = NDArray[np.float64]


def representation_gram(gradients: Sequence[Representation]) -> Matrix:
    """Return the inner products (T, T) of the tasks' gradients over all arrays of the representation."""
    products: Matrix = np.sum([gram([gradient[k] for gradient in gradients]) for k in range(len(gradients[0]))], axis=0)
    return products


def weight_decay_terms(weights: Array, gradients: Sequence[Array], weight_decay: float) -> Row:
    """Return the weight decay's part, equal for all sources: decay · ⟨θ, g_j⟩, (T,); weights and gradients are (P,)."""
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


def first_order_affinity(inner: Matrix, losses: Sequence[float], decay_terms: Row | float = 0.0) -> Matrix:
    """Return S (T, T), values[i][j] being i→j, from inner products (T, T), losses (T,) and decay terms (T,).

    A loss of zero (no labels in the batch) gives a column of values that are not finite.
    """
    before = np.asarray(losses, np.float64)
    column = np.where(before == 0, np.nan, before)  # (T,), by target
    values: Matrix = (inner + decay_terms) / column
    return values
