"""Randomness: dropout and noise.

A graph with a random operator has an input `seed` () int64. The random number of an element is a hash of the seed, of
which random operator of the graph it is and of the element's place, so a graph that recomputes a forward pass with the
same seed draws the same. The hash is that of C. Wellons' hash-prospector with constants under 2³¹, two rounds of
multiply and shift on 32 bits, in int64 because ONNX has no unsigned multiplication; `draws` is the same in numpy.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.lowering.context import Call, Context, Result, RuleBook, Value
from export.onnx_graph import ELEMENT
from export.trace import Batch

aten = torch.ops.aten
RULES = RuleBook()

MASK = 0xFFFFFFFF
ROUNDS = ((15, 0x2C1B3C6D), (12, 0x297A2D39))
LAST_SHIFT = 15
STEP = 0x1E3779B1
"""The factor of a random operator's place in its graph."""


def draws(seed: int, operator: int, count: int) -> NDArray[np.int64]:
    """Return the random numbers (count,), 0 to 2³² − 1, of a graph's random operator, counted from 0 on."""
    start = _hash(np.array([(seed + operator * STEP) & MASK], np.int64))
    return _hash((np.arange(count, dtype=np.int64) + start) & MASK)


def threshold(p: float) -> int:
    """Return the number below which a draw is a one, of probability p."""
    return round(p * 2**32)


def _hash(value: NDArray[np.int64]) -> NDArray[np.int64]:
    for shift, factor in ROUNDS:
        value = ((value ^ (value >> shift)) * factor) & MASK
    return value ^ (value >> LAST_SHIFT)


def uniforms(seed: int, operator: int, count: int) -> NDArray[np.float32]:
    """Return the numbers (count,) from 0 to below 1 of a graph's random operator: the upper 24 bits of its draws."""
    return ((draws(seed, operator, count) >> 8) / np.float32(2**24)).astype(np.float32)


@RULES.rule(aten.bernoulli.p)
def bernoulli(context: Context, call: Call, x: Value, p: float, **_: Any) -> Result:
    """Ones with probability p, else zeros, in the shape of x."""
    below = context.add("Less", _drawn(context, call), context.number(threshold(p), torch.int64))
    return context.reshape(context.add("Cast", below, to=ELEMENT[call.dtype]), call.shape)


@RULES.rule(aten.rand.default)
def uniform(context: Context, call: Call, *_: Any, **__: Any) -> Result:
    """Draw numbers from 0 to below 1."""
    upper = context.add("Div", _drawn(context, call), context.number(2**8, torch.int64))
    whole = context.add("Cast", upper, to=ELEMENT[call.dtype])
    return context.reshape(context.add("Mul", whole, context.number(2.0**-24, call.dtype)), call.shape)


def _drawn(context: Context, call: Call) -> str:
    """Return a random number for each element of the result, in a row."""
    add, number = context.add, context.number
    int64 = torch.int64
    moved = add("Add", context.seed(call), number(call.draw * STEP, int64))
    start = _onnx_hash(context, add("BitwiseAnd", moved, number(MASK, int64)))
    length = number(1, int64)
    for dim in call.shape:
        length = add("Mul", length, number(Batch(dim.factor) if isinstance(dim, Batch) else dim, int64))
    place = add("Range", number(0, int64), length, number(1, int64))
    return _onnx_hash(context, add("BitwiseAnd", add("Add", place, start), number(MASK, int64)))


def _onnx_hash(context: Context, value: str) -> str:
    add, number = context.add, context.number

    def mixed(value: str, shift: int) -> str:  # a shift of what is not negative is a division
        return add("BitwiseXor", value, add("Div", value, number(2**shift, torch.int64)))

    for shift, factor in ROUNDS:
        product = add("Mul", mixed(value, shift), number(factor, torch.int64))
        value = add("BitwiseAnd", product, number(MASK, torch.int64))
    return mixed(value, LAST_SHIFT)
