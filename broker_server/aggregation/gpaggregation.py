"""GPAggregation: one step of a general model from the gradients of clients with tasks of their own.

For K clients with gradients g_k and n_k examples, and the aggregate h of the round before:

1. attention: g_k ← a_k · g_k with a = K · softmax_k(cos(g_k, h)); a = 1 where there is no h
2. projection: where g_i · g_j < 0, what goes against g_j is taken away from g_i (wire/conflict.py), for all i ≠ j in
   the order in which the clients are given
3. aggregation: Σ n_k · g_k / Σ n_k, which is the next round's h

The result depends on the order of three and more clients that conflict, so the caller gives them in an order that means
nothing, such as that of their names. What step the aggregate leads to is a server optimizer's matter.

Source: FedBone (Chen et al., JCST 39(5), 2024; arXiv 2306.17465). How its attention is normalised could not
be checked against the text: this one leaves the gradients' mean scale as it is, and another may be given.
"""

# coverage: every branch

from collections.abc import Callable, Sequence

import numpy as np

from edge_runtime.wire.conflict import Matrix, Row, combine, gram, project
from edge_runtime.wire.tensors import Vector

Attention = Callable[[Row], Row]
"""From the cosines (K,) of the clients' gradients with the last aggregate to the factors a (K,) of the gradients."""


def softmax(cosines: Row) -> Row:
    """Return K · softmax: clients whose gradients agree with the last aggregate count more, and all K on average 1."""
    raised = np.exp(cosines - cosines.max())
    factors: Row = len(cosines) * raised / raised.sum()
    return factors


def coefficients(inner: Matrix, examples: Sequence[int], factors: Row | None = None) -> Row:
    """Return the coefficient of each client's gradient (K,), from inner products (K, K) and attention (K,)."""
    scale = np.ones(len(inner)) if factors is None else factors
    shares = np.array(examples, np.float64) / sum(examples)
    projected = project(inner * scale * scale[:, None])  # (K, K)
    counts: Row = shares @ projected * scale
    return counts


def aggregate(
    gradients: Sequence[Vector], examples: Sequence[int], history: Vector | None = None, attention: Attention = softmax
) -> Vector:
    """Return the aggregate (P,) of K clients' gradients (P,), each with its number of examples, summed in float64.

    `history` (P,) is the last round's aggregate. Raises ValueError unless there is a gradient and an example, and as
    many numbers of examples as gradients.
    """
    if not gradients or len(gradients) != len(examples) or sum(examples) <= 0 or min(examples) < 0:
        raise ValueError(f"{len(gradients)} gradients of clients with {list(examples)} examples cannot be aggregated")
    if history is None:
        return combine(gradients, coefficients(gram(gradients), examples))
    inner = gram([*gradients, history])  # (K + 1, K + 1)
    return combine(gradients, coefficients(inner[:-1, :-1], examples, attention(cosines(inner))))


def cosines(inner: Matrix) -> Row:
    """Return the cosines (K,) of K vectors with one more, the last, from all inner products; 0 for vectors of zeros."""
    lengths = np.sqrt(inner.diagonal())
    both = lengths[:-1] * lengths[-1]
    found: Row = np.divide(inner[-1, :-1], both, out=np.zeros(len(both)), where=both > 0)
    return found
