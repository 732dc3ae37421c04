"""The absolute terms of a parameter's gradient: the scale on which its rounding is measured.

A gradient of a parameter is a sum over samples and places, and its terms may cancel: the bias before a normalisation,
or one after a normalisation that feeds only another, gets gradients whose sum is zero. What two correct programs find
there is rounding alone, a few units in the last place of the terms, and differs from one processor to the next as their
orders of addition do. On the scale of its own value it means nothing; on that of Σ |term|, it tells right from wrong.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from export.model_part import Lowered
from export.trace import TraceStep

aten = torch.ops.aten
GRADIENT = "grad."
"""What the names of parameters' gradients begin with."""
SUMS: Mapping[Any, int] = {
    **dict.fromkeys((aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default), 1),
    **dict.fromkeys((aten.mm.default, aten.bmm.default), 2),
}
"""Operators that add up products of so many first arguments: of absolute values they give Σ |term|."""
CONVOLVED = aten.convolution_backward.default
"""Results: gradients of the input, of the weight, Σ dy · x, and of the bias, Σ dy."""
NORMALISED = (
    *(aten.native_batch_norm_backward.default, aten.native_layer_norm_backward.default),
    aten.native_group_norm_backward.default,
)
"""Results: gradients of the input, of the weight, Σ dy · x̂, and of the bias, Σ dy."""
PASSING = (
    *(operator.getitem, aten.view.default, aten._unsafe_view.default, aten.clone.default, aten.expand.default),  # noqa: SLF001
    *(aten.t.default, aten.transpose.int, aten.permute.default, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.unsqueeze.default, aten.slice.Tensor, aten.select.int, aten.add.Tensor, aten.mul.Tensor, aten.mul.Scalar),
    *(aten.div.Tensor, aten.div.Scalar, aten.neg.default),
)
"""Operators that move sums about, scale them or add them to one another."""


class AbsoluteTerms:
    """Looks on while a graph's operators run, and adds up the absolute terms of its parameters' gradients."""

    def __init__(self, graph: Lowered) -> None:
        outputs = zip(graph.outputs, graph.trace.outputs, strict=True)
        self._gradients = {name: node for name, node in outputs if name.startswith(GRADIENT)}
        steps = {step.node: step for step in graph.trace.steps}
        self._path: set[fx.Node] = set()
        ahead = list(self._gradients.values())
        while ahead:
            node = ahead.pop()
            if node in steps and node not in self._path:
                self._path.add(node)
                ahead += steps[node].sources if steps[node].target in PASSING else ()
        self._found: dict[fx.Node, Any] = {}

    def see(self, step: TraceStep, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Take a look at an operator that runs with these arguments."""
        if step.node not in self._path:
            return
        if step.target in SUMS:
            count = SUMS[step.target]
            self._found[step.node] = step.target(*map(_absolute, args[:count]), *args[count:], **kwargs)
        elif step.target is CONVOLVED:
            (*rest, wanted) = args[3:]
            self._found[step.node] = CONVOLVED(*map(_absolute, args[:3]), *rest, [False, *wanted[1:]], **kwargs)
        elif step.target in NORMALISED:
            self._found[step.node] = _normalised(step, args, kwargs)
        elif step.target in PASSING and any(node in self._found for node in step.sources):
            given = (
                self._found.get(argument, _absolute(value)) if isinstance(argument, fx.Node) else _absolute(value)
                for argument, value in zip(step.args, args, strict=True)
            )
            self._found[step.node] = _absolute(step.target(*given, **kwargs))

    def largest(self) -> dict[str, float]:
        """Return the largest Σ |term| of each parameter's gradient, by its name, where it is known to be a sum."""
        found = {name: self._found.get(node) for name, node in self._gradients.items()}
        return {name: float(value.max()) for name, value in found.items() if isinstance(value, Tensor)}


def _absolute(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _normalised(
    step: TraceStep, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Tensor | None, Tensor | None]:
    """Of a normalisation's backward pass: its sums with |dy|, and for the weight with the sign that makes dy · x̂ so."""
    gradient, x = args[:2]
    size = gradient.abs()
    _, _, bias = step.target(size, *args[1:], **kwargs)
    _, weight, _ = step.target(size * torch.sign(_centred(step, args)).reshape(x.shape), *args[1:], **kwargs)
    return None, _absolute(weight), _absolute(bias)


def _centred(step: TraceStep, args: Sequence[Any]) -> Tensor:
    """Return the normalised input without its mean: the sign is that of x̂."""
    x: Tensor = args[1]
    mean: Tensor
    if step.target is aten.native_layer_norm_backward.default:
        mean = args[3]
    elif step.target is aten.native_group_norm_backward.default:
        mean = args[2].unsqueeze(-1)
        x = x.reshape(*mean.shape[:2], -1)
    else:
        running, saved, training = args[3], args[5], args[7]
        mean = (saved if training else running).reshape(1, -1, *[1] * (x.ndim - 2))
    return x - mean
