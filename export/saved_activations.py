"""Which activations a stage saves in its forward pass, and which its backward pass recomputes because they are cheap.

Results that cost arithmetic are saved: those of convolutions and matrix products, of pools, of operators that draw or
search, and the statistics of normalisations, which are small. Results for which each element is read and written once
(activation functions, masks, normalisations with known statistics, changes of shape) are recomputed. Of a convolution,
a normalisation and an activation function in a row, one array is saved instead of PyTorch's two.
"""

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from export.trace import Trace, TraceStep

aten = torch.ops.aten
NORMALIZATIONS: frozenset[Any] = frozenset(
    {aten.native_batch_norm.default, aten.native_group_norm.default, aten.native_layer_norm.default}
)
CHEAP: frozenset[Any] = NORMALIZATIONS | {
    aten.cat.default,
    aten.clone.default,
    aten.constant_pad_nd.default,
    aten._unsafe_view.default,  # noqa: SLF001
    aten._to_copy.default,  # noqa: SLF001
    aten.upsample_nearest2d.default,
    aten.full.default,
    aten.arange.start_step,
}


def saved_nodes(trace: Trace, gradients: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the results of the forward pass that are saved for its backward pass, in order.

    `gradients` are the inputs that the backward pass starts from; whatever does not depend on them is forward.
    """
    steps = {step.node: step for step in trace.steps}
    backward = set(gradients)
    for step in trace.steps:
        if backward.intersection(step.sources):
            backward.add(step.node)
    saved: set[fx.Node] = set()
    pending = [
        source
        for step in trace.steps
        if step.node in backward
        for source in step.sources
        if source in steps and source not in backward
    ]
    seen = set(pending)
    while pending:
        step = steps[pending.pop()]
        if _cheap(step, steps):
            for source in step.sources:
                if source in steps and source not in seen:
                    seen.add(source)
                    pending.append(source)
        else:
            saved.add(step.node)
    return tuple(step.node for step in trace.steps if step.node in saved)


def _cheap(step: TraceStep, steps: dict[fx.Node, TraceStep]) -> bool:
    if step.target is operator.getitem:
        source, index = step.args
        nothing = 0 in (step.shapes[0] or ())  # the statistics of a batch norm that uses those it has
        return steps[source].target in NORMALIZATIONS and (index == 0 or nothing)
    if step.shapes[0] is None or len(step.shapes) > 1:
        return step.target in NORMALIZATIONS
    overload = step.target
    return overload in CHEAP or overload.is_view or torch.Tag.pointwise in overload.tags
