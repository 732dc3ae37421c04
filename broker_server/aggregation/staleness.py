"""How much an update counts that began from older weights than the newest, and where it is put.

A device trains from the weights of some version v, and ends with x. When its update is folded the newest version may be
m: its age is m − v. Its change, w_v − x, is then made to the newest weights, by its share s of 0 to 1:

    parameters    x' = w_m − s · (w_v − x)
    state         x' = w_m + s · (x − w_m), between the two: a running variance stays positive

and x' is averaged by examples. So the mean step is Σ n_i s_i Δ_i / Σ n_i: shares are not made to sum to one, and stale
updates move the model less. An update of age 0 and share 1 is x itself, bit for bit: federated averaging.

- sqrt: s = 1 / √(1 + age), FedBuff's (Nguyen et al., AISTATS 2022, section 5.1)
- none: s = 1
- ftte: sqrt's, times the buffer's mean variance over the update's own, at most 1. FTTE (Tenison et al., arXiv
  2510.03165) weights by age and by the variance of the update; its abstract says no more, so this is a reconstruction.
"""

# coverage: every branch

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edge_runtime.wire.tensors import STATE, TensorTable, Vector

Discount = Literal["sqrt", "none", "ftte"]


def shares(discount: Discount, ages: Sequence[int], variances: Sequence[float]) -> list[float]:
    """Return each update's share of 0 to 1. `variances` are of the changes (`variance`); only ftte looks at them."""
    if discount == "none":
        return [1.0] * len(ages)
    by_age = [1.0 / math.sqrt(1 + age) for age in ages]
    if discount == "sqrt" or not ages:
        return by_age
    mean = sum(variances) / len(variances)
    return [
        share * (1.0 if variance <= mean else mean / variance)
        for share, variance in zip(by_age, variances, strict=True)
    ]


def variance(table: TensorTable, base: Vector, trained: Vector) -> float:
    """Return the variance of the elements of a change of parameters: the front of the vector, without the state."""
    where = slice(table.parameters.size)
    return float(np.subtract(trained[where], base[where], dtype=np.float64).var())


def rebased(table: TensorTable, trained: Vector, *, base: Vector, newest: Vector, share: float) -> Vector:
    """Return trained weights (P,) as if they had begun from the `newest` ones instead of `base`, by their share.

    Computed in float64. Raises TensorsInvalid for another length or dtype.
    """
    for vector in (trained, base, newest):
        table.check(vector)
    moved = np.empty_like(trained)
    for part, where in table.parts.items():
        now = newest[where].astype(np.float64)
        origin = now if part.startswith(STATE) else base[where]
        moved[where] = now + share * (trained[where] - origin)
    return moved
