"""Padding with mirrored or repeated pixels.

The padded tensor is a linear function of each direction, so the gradient is the product with a constant matrix for
each direction that is padded: PyTorch's own padding applied to the identity.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from export.lowering.context import Call, Context, Result, RuleBook, Value, size

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(aten.reflection_pad1d.default, aten.reflection_pad2d.default)
@RULES.rule(aten.replication_pad1d.default, aten.replication_pad2d.default)
def pad(context: Context, call: Call, x: Value, padding: Sequence[int]) -> Result:
    """Pad the last dimensions; `padding` is before and after, from the last dimension on."""
    count = len(padding) // 2
    before = [0] * (x.rank - count) + [padding[2 * i] for i in reversed(range(count))]
    after = [0] * (x.rank - count) + [padding[2 * i + 1] for i in reversed(range(count))]
    mode = "reflect" if "reflection" in call.operator else "edge"
    return context.add("Pad", x.name, context.ints(*before, *after), mode=mode)


@RULES.rule(aten.reflection_pad1d_backward.default, aten.reflection_pad2d_backward.default)
@RULES.rule(aten.replication_pad1d_backward.default, aten.replication_pad2d_backward.default)
def pad_backward(context: Context, call: Call, gradient: Value, x: Value, padding: Sequence[int]) -> Result:
    """Each padded pixel's gradient added to that of the pixel that it repeats."""
    mode = "reflect" if "reflection" in call.operator else "replicate"
    name = gradient.name
    for i in range(len(padding) // 2):
        widths = list(padding[2 * i : 2 * i + 2])
        if not any(widths):
            continue
        length = size(x.shape[-1 - i])
        spread = F.pad(torch.eye(length).reshape(1, length, length), widths, mode=mode)[0].numpy()  # (length, padded)
        if i == 0:
            name = context.add("MatMul", name, context.graph.constant(np.ascontiguousarray(spread.T)))
        else:
            name = context.add("MatMul", context.graph.constant(spread), name)
    return name
