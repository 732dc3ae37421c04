"""Padding with mirrored or repeated elements.

The padded tensor is a linear function of each direction, so the gradient is the product with a constant matrix for
each direction that is padded: PyTorch's own padding applied to the identity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from export.lowering.context import Call, Context, Result, RuleBook, Value, size
from export.trace import Dim

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
@RULES.rule(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def pad(context: Context, call: Call, x: Value, padding: Sequence[int]) -> Result:
    """Pad the last dimensions; `padding` is before and after, from the last dimension on."""
    count = len(padding) // 2
    before = [0] * (x.rank - count) + [padding[2 * i] for i in reversed(range(count))]
    after = [0] * (x.rank - count) + [padding[2 * i + 1] for i in reversed(range(count))]
    if min(padding) < 0:  # a pixel that is cut off may still be repeated, which Pad refuses
        mode = "reflect" if "reflection" in call.operator else "replicate"
        name = x.name
        for i in range(count):
            name = _multiplied(context, name, i, _spread(size(x.shape[-1 - i]), padding, i, mode).T, x.shape)
        return name
    mode = "reflect" if "reflection" in call.operator else "edge"
    return context.add("Pad", x.name, context.ints(*before, *after), mode=mode)


@RULES.rule(aten.reflection_pad1d_backward.default, aten.reflection_pad2d_backward.default)
@RULES.rule(aten.replication_pad1d_backward.default, aten.replication_pad2d_backward.default)
@RULES.rule(aten.reflection_pad3d_backward.default, aten.replication_pad3d_backward.default)
def pad_backward(context: Context, call: Call, gradient: Value, x: Value, padding: Sequence[int]) -> Result:
    """Each padded pixel's gradient added to that of the pixel that it repeats."""
    mode = "reflect" if "reflection" in call.operator else "replicate"
    name = gradient.name
    for i in range(len(padding) // 2):
        widths = list(padding[2 * i : 2 * i + 2])
        if not any(widths):
            continue
        name = _multiplied(context, name, i, _spread(size(x.shape[-1 - i]), padding, i, mode), x.shape)
    return name


def _spread(length: int, padding: Sequence[int], i: int, mode: str) -> NDArray[Any]:
    """Return what each element of the i-th dimension from the last on is padded to: (length, padded)."""
    identity = torch.eye(length).reshape(1, length, length)
    found: NDArray[Any] = F.pad(identity, list(padding[2 * i : 2 * i + 2]), mode=mode)[0].numpy()
    return found


def _multiplied(context: Context, name: str, i: int, matrix: NDArray[Any], shape: Sequence[Dim]) -> str:
    """Multiply the i-th dimension from the last on by a matrix (target, source); those behind it are as in `shape`."""
    if i == 0:
        return context.add("MatMul", name, context.graph.constant(np.ascontiguousarray(matrix.T)))
    left = context.graph.constant(np.ascontiguousarray(matrix))
    if i == 1:
        return context.add("MatMul", left, name)
    kept = [0] * (len(shape) - 1 - i)
    flat = context.reshape_to(name, *kept, matrix.shape[1], -1)
    return context.reshape_to(context.add("MatMul", left, flat), *kept, matrix.shape[0], -1, size(shape[-1]))
