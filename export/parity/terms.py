"""The absolute terms of a parameter's gradient: the scale on which its rounding is measured.

A gradient of a parameter is a sum over samples and places, and its terms may cancel: the bias before a normalisation,
or one after a normalisation that feeds only another, gets gradients whose sum is zero. What two correct programs find
there is rounding alone, a few units in the last place of the terms, and differs from one processor to the next as their
orders of addition do. On the scale of its own value it means nothing; on that of Σ |term|, it tells right from wrong.

A saturated tanh or sigmoid has a term of its own that cancels: its slope is a difference, 1 − y² or y · (1 − y), of
which nothing but the rounding of y is left where y is near one. There a term is what the two sides of it add up to.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
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
SATURATING: Mapping[Any, Callable[[Tensor, Tensor], Tensor]] = {
    aten.tanh_backward.default: lambda gradient, y: gradient.abs() * (1 + y * y),
    aten.sigmoid_backward.default: lambda gradient, y: gradient.abs() * y * (1 + y),
}
"""Operators whose slope is a difference, and their absolute terms."""
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
        self._steps = {step.node: step for step in graph.trace.steps}
        self._path = self._reached(self._gradients.values())
        self._operands = self._reached(
            source for node in self._path if self._steps[node].target not in PASSING for source in node.all_input_nodes
        )
        """What sums add up, back to where it comes from: where that is a slope of SATURATING, its terms are found."""
        self._found: dict[fx.Node, Any] = {}
        self._saturated: dict[fx.Node, Tensor] = {}

    def _reached(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Return these computed nodes, and those before them whose results they move about."""
        found: set[fx.Node] = set()
        ahead = list(nodes)
        while ahead:
            node = ahead.pop()
            if node in self._steps and node not in found:
                found.add(node)
                ahead += self._steps[node].sources if self._steps[node].target in PASSING else ()
        return found

    def see(self, step: TraceStep, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Take a look at an operator that runs with these arguments."""
        if step.node in self._operands:
            if step.target in SATURATING:
                self._saturated[step.node] = SATURATING[step.target](*args)
            else:
                _pass_on(self._saturated, step, args, kwargs)
        if step.node not in self._path:
            return
        if step.target in SUMS:
            count = SUMS[step.target]
            terms = _terms(self._saturated, step, args)
            self._found[step.node] = step.target(*terms[:count], *args[count:], **kwargs)
        elif step.target is CONVOLVED:
            (*rest, wanted) = args[3:]
            terms = _terms(self._saturated, step, args)
            self._found[step.node] = CONVOLVED(*terms[:3], *rest, [False, *wanted[1:]], **kwargs)
        elif step.target in NORMALISED:
            self._found[step.node] = _normalised(step, [_terms(self._saturated, step, args)[0], *args[1:]], kwargs)
        else:
            _pass_on(self._found, step, args, kwargs)

    def largest(self) -> dict[str, float]:
        """Return the largest Σ |term| of each parameter's gradient, by its name, where it is known to be a sum."""
        found = {name: self._found.get(node) for name, node in self._gradients.items()}
        return {name: float(value.max()) for name, value in found.items() if isinstance(value, Tensor)}


def _pass_on(found: dict[fx.Node, Any], step: TraceStep, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Add what an operator of PASSING makes of terms that are found, if there are any."""
    if step.target in PASSING and any(node in found for node in step.sources):
        found[step.node] = _absolute(step.target(*_terms(found, step, args), **kwargs))


def _terms(found: Mapping[fx.Node, Any], step: TraceStep, args: Sequence[Any]) -> list[Any]:
    """Return the absolute terms of an operator's arguments: those that are found, or what they are."""
    return [
        found.get(argument, _absolute(value)) if isinstance(argument, fx.Node) else _absolute(value)
        for argument, value in zip(step.args, args, strict=True)
    ]


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
