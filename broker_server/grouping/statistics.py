"""Means over seeds, or devices, with Student's 95 % interval, alone and paired with a reference of the same ones."""

# coverage: every branch

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist, mean, stdev
from typing import TypeVar

import msgspec

Unit = TypeVar("Unit", int, str)
"""What is repeated: a seed, or a device."""

# The 97.5 % quantile of Student's t for 1 to 30 degrees of freedom.
_T = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over `n` seeds. Its 95 % interval is ± `half_width`; None with one seed, which has no interval."""

    n: int
    mean: float
    half_width: float | None


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t. Raises ValueError below one degree of freedom.

    Above 30 degrees by its expansion about the normal one (Abramowitz & Stegun, 26.7.5), right to five digits.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Return the mean of what was measured; None where nothing was. What was not measured is left out, never 0."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    count = len(known)
    half_width = t_quantile(count - 1) * stdev(known) / math.sqrt(count) if count > 1 else None
    return Estimate(n=count, mean=mean(known), half_width=half_width)


def ratio(values: Mapping[Unit, float | None], reference: Mapping[Unit, float | None]) -> Estimate | None:
    """Return the mean of value / reference over the seeds that have both; None where none has."""
    return estimate(mine / base for mine, base in _pairs(values, reference) if base)


def difference(values: Mapping[Unit, float | None], reference: Mapping[Unit, float | None]) -> Estimate | None:
    """Return the mean of value − reference over the seeds that have both; None where none has."""
    return estimate(mine - base for mine, base in _pairs(values, reference))


def _pairs(values: Mapping[Unit, float | None], reference: Mapping[Unit, float | None]) -> list[tuple[float, float]]:
    pairs = ((values[seed], reference[seed]) for seed in sorted(values.keys() & reference.keys()))
    return [(mine, base) for mine, base in pairs if mine is not None and base is not None]
