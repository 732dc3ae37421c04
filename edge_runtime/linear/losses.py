"""Losses of linear models: values, slopes, conjugates, and steps of dual coordinate ascent.

A loss ℓ(z, y) is of a prediction z = w·x and a label y; labels of classes are -1 and 1. α is the dual variable of a
sample, and ℓ*(-α) the conjugate at -α: ℓ(z, y) + ℓ*(-α) ≥ -αz for every z and every α that is allowed, which is what
makes the duality gap a certificate.

The step of one α maximises -ℓ*(-α') - q(α' - α) - κ/2 (α' - α)², where q is the sample's prediction with the changes of
the pass so far and κ the curvature of the other tasks' answer to this one.

Source: Shalev-Shwartz, Zhang, "Stochastic Dual Coordinate Ascent", JMLR 14, 2013, section 6; the subproblem is that of
Liu, Pan, Ho, "Distributed Multi-Task Relationship Learning", KDD 2017, section 3.
"""

# coverage: every branch

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.linear import LossName

Array = NDArray[np.float64]
TOLERANCE = 1e-14


class Loss(Protocol):
    """A seam: losses differ in these formulas alone. Arrays are (n,), one for each sample."""

    bend: float
    """The largest second derivative in z; infinite for a loss that has a corner."""

    def value(self, z: Array, y: Array) -> Array:
        """Return ℓ(z, y)."""
        ...

    def slope(self, z: Array, y: Array) -> Array:
        """Return a derivative of ℓ in z."""
        ...

    def conjugate(self, alpha: Array, y: Array) -> Array:
        """Return ℓ*(-α), for α that are allowed."""
        ...

    def step(self, alpha: float, y: float, q: float, kappa: float) -> float:
        """Return the best new α of one sample, given its prediction q and κ > 0."""
        ...


class Hinge:
    """max(0, 1 - yz): the support vector machine. α is allowed where 0 ≤ yα ≤ 1."""

    bend = math.inf

    def value(self, z: Array, y: Array) -> Array:
        """Return ℓ(z, y)."""
        return np.maximum(0.0, 1.0 - y * z)

    def slope(self, z: Array, y: Array) -> Array:
        """Return a derivative of ℓ in z; 0 at the corner."""
        return np.where(y * z < 1.0, -y, 0.0)

    def conjugate(self, alpha: Array, y: Array) -> Array:
        """Return ℓ*(-α)."""
        return -y * alpha

    def step(self, alpha: float, y: float, q: float, kappa: float) -> float:
        """Return the best new α."""
        return y * min(1.0, max(0.0, (1.0 - y * q) / kappa + y * alpha))


class Squared:
    """factor/2 (z - y)²: with factor 2 DMTRL's (z - y)², with factor 1 that of least squares. Every α is allowed."""

    def __init__(self, factor: float) -> None:
        self.bend = factor

    def value(self, z: Array, y: Array) -> Array:
        """Return ℓ(z, y)."""
        return self.bend / 2 * (z - y) ** 2

    def slope(self, z: Array, y: Array) -> Array:
        """Return the derivative of ℓ in z."""
        return self.bend * (z - y)

    def conjugate(self, alpha: Array, y: Array) -> Array:
        """Return ℓ*(-α)."""
        return alpha**2 / (2 * self.bend) - alpha * y

    def step(self, alpha: float, y: float, q: float, kappa: float) -> float:
        """Return the best new α."""
        return alpha + (y - q - alpha / self.bend) / (1 / self.bend + kappa)


class Logistic:
    """log(1 + exp(-yz)). α is allowed where 0 ≤ yα ≤ 1."""

    bend = 0.25

    def value(self, z: Array, y: Array) -> Array:
        """Return ℓ(z, y)."""
        return np.logaddexp(0.0, -y * z)

    def slope(self, z: Array, y: Array) -> Array:
        """Return the derivative of ℓ in z."""
        return -y * np.exp(-np.logaddexp(0.0, y * z))

    def conjugate(self, alpha: Array, y: Array) -> Array:
        """Return ℓ*(-α), the negative entropy of yα."""
        share = np.clip(y * alpha, 0.0, 1.0)
        # 0 log 0 is 0.
        return share * np.log(np.maximum(share, 1e-300)) + (1 - share) * np.log(np.maximum(1 - share, 1e-300))

    def step(self, alpha: float, y: float, q: float, kappa: float) -> float:
        """Return the best new α, by Newton's method kept inside of an interval that shrinks around it."""
        begin = y * alpha
        low, high = 0.0, 1.0
        share = min(max(begin, 1e-6), 1 - 1e-6)
        while True:  # each step makes the interval shorter
            slope = math.log(share / (1 - share)) + y * q + kappa * (share - begin)  # grows with share
            low, high = (low, share) if slope > 0 else (share, high)
            moved = share - slope / (1 / (share * (1 - share)) + kappa)
            # Past an end of the interval the middle is nearer; at 0 and 1 the slope is infinite.
            moved = moved if low < moved < high else (low + high) / 2
            if abs(moved - share) <= TOLERANCE:
                return y * share
            share = moved


LOSSES: Mapping[LossName, Loss] = {
    "hinge": Hinge(),
    "squared": Squared(2.0),
    "half_squared": Squared(1.0),
    "logistic": Logistic(),
}
