"""One part of a model as a function of its inputs, its parameters and its state, and that function as a graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.errors import ModelInvalid
from export.lowering import lower
from export.running import moving, running_statistics, unchanged
from export.trace import trace

Sources = dict[str, Tensor]
"""A graph's data by input name: example batches, of which only shape and type matter."""

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A part that has been run: its result, the parameters that it was run with, and its state afterwards."""

    result: Any
    parameters: Results
    state: Results

    def next_state(self) -> Results:
        """The state as the outputs of a graph."""
        return {f"next.{name}": value for name, value in self.state.items()}

    def gradients(self, part: str, values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Results:
        """The gradients of all parameters as the outputs of a graph. Raises ModelInvalid where there is none."""
        known = list(self.parameters)
        found = torch.autograd.grad(values, list(self.parameters.values()), weights, allow_unused=True)
        for name, gradient in zip(known, found, strict=True):
            if gradient is None:
                raise ModelInvalid(f"parameter {part}.{name} gets no gradient: it has no effect on the loss")
        return {f"grad.{name}": g for name, g in zip(known, found, strict=True) if g is not None}


class Part:
    """A module that is trained as one part: `encoder` or `head.<task>`."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.parameters = dict(sorted(module.named_parameters()))
        self.state = running_statistics(module)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and state by their names on the wire."""
        parameters = {f"{self.name}.{name}": value.detach() for name, value in self.parameters.items()}
        return parameters | {f"state.{self.name}.{name}": value for name, value in self.state.items()}

    def graph(
        self, sources: Sources, function: Callable[[Sources, Callable[[Any], Run]], Results], *, training: bool
    ) -> onnx.ModelProto:
        """Trace and translate `function(sources, run)`, where `run(value)` runs the module; it gives outputs by name.

        Inputs are the sources and the part's parameters and, where the graph uses them, its state and a seed.
        """
        names: list[str] = []

        def traced(*values: Tensor) -> tuple[Tensor, ...]:
            rest = iter(values)
            data = {name: next(rest) for name in sources}
            parameters = {name: next(rest) for name in self.parameters}
            state = {name: next(rest) for name in self.state}

            def run(value: Any) -> Run:
                with moving() as moved:
                    result = torch.func.functional_call(self.module, parameters | state, (value,))
                return Run(result, parameters, state | moved.of(self.module))

            results = function(data, run)
            names[:] = results
            return tuple(results.values())

        root = nn.ModuleDict({self.name.replace(".", "/"): self.module})
        with unchanged(self.module):
            self.module.train(training)
            found = trace(traced, lambda batch: self._inputs(sources, batch), root)
        data = list(sources)
        inputs = [*data, *(f"param.{n}" for n in self.parameters), *(f"state.{n}" for n in self.state)]
        optional = {name for name in inputs if name.startswith(("state.", "z.", "dz."))}
        return lower(found, inputs=inputs, outputs=names, optional=optional)

    def _inputs(self, sources: Sources, batch: int) -> list[Tensor]:
        data = [
            torch.zeros((batch, *value.shape[1:]), dtype=value.dtype, requires_grad=value.requires_grad)
            for value in sources.values()
        ]
        return [*data, *self.parameters.values(), *self.state.values()]
