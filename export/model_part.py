"""One part of a model as a function of its inputs, its parameters and its state, and that function as graphs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from edge_runtime.wire.tensors import part_of
from export.errors import ModelInvalid
from export.lowering import Translation, lower
from export.model import apply
from export.module_state import in_training, noticing_modes, substituted
from export.running_statistics import moving, moving_statistics, running_statistics
from export.signature import Role, Signature
from export.trace import Trace, trace

Sources = dict[str, Tensor]
"""A graph's data by input name: example batches; only their shapes and types matter."""

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A part that has been run: its result, the parameters that it was run with, and the state that it moves."""

    result: Any
    parameters: Results
    state: Results

    def next_state(self) -> Results:
        """Return the state as the outputs of a graph."""
        return {Role.NEXT_STATE.tensor_name(name): value for name, value in self.state.items()}

    def gradients(
        self,
        part: str,
        values: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        leaves: Mapping[str, Tensor] | None = None,
    ) -> Results:
        """Return the gradients of all inputs and trained parameters with an effect, as the outputs of a graph.

        Raises ModelInvalid where they cannot be computed.
        """
        leaves = leaves or {}
        trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        sought = [*leaves.values(), *trained.values()]
        if not sought or not values:
            return {}
        try:
            found = torch.autograd.grad(values, sought, weights, allow_unused=True)
        except RuntimeError as exc:  # a value that the gradient needs was changed in place
            raise ModelInvalid(f"{part} cannot be differentiated: {str(exc).splitlines()[0]}") from exc
        of_leaves = {name: gradient for name, gradient in zip(leaves, found, strict=False) if gradient is not None}
        results = {Role.VALUE_GRADIENT.tensor_name(name): gradient for name, gradient in of_leaves.items()}
        for name, gradient in zip(trained, found[len(leaves) :], strict=True):
            if gradient is not None:
                results[Role.PARAMETER_GRADIENT.tensor_name(name)] = gradient
        return results


@dataclass(frozen=True)
class Lowered(Signature):
    """Operators as a graph: what it computes, and what it calls their results."""

    trace: Trace
    translation: Translation


@dataclass(frozen=True)
class Traced(Signature):
    """A function of a part as operators."""

    trace: Trace
    of_both_modes: bool = False
    """Whether it is the same in evaluation mode as in training mode."""

    def node(self, name: str) -> fx.Node:
        """Return the node of an input or an output."""
        if name in self.inputs:
            return self.trace.inputs[self.inputs.index(name)].node
        node: fx.Node = self.trace.outputs[self.outputs.index(name)]
        return node

    def graph(
        self, outputs: Sequence[str] | None = None, given: Mapping[str, fx.Node] | None = None, first: str | None = None
    ) -> Lowered:
        """Lower all outputs or some, from the inputs that they need, to a graph.

        `given` are nodes that it gets by these names instead of computing them; an output that is one of them is put
        out under that name. The first dimension of the input `first`, by default the first input, is the micro-batch.
        """
        more = dict(given or {})
        outputs = self.outputs if outputs is None else outputs
        results = [more[name] if name in more else self.trace.outputs[self.outputs.index(name)] for name in outputs]
        taken = {name: node for name, node in more.items() if name not in outputs}
        first = first or self.inputs[0]
        inputs = {first: self.node(first)} | {name: self.node(name) for name in self.inputs} | taken
        part = self.trace.part(list(inputs.values()), results)
        # Where activations were saved, no mask is early: all arrives at once, and led so, the arena's gaps cost more.
        signature = Signature(tuple(inputs), tuple(outputs))
        late = [] if signature.inputs_of(Role.SAVED) else signature.inputs_of(Role.VALUE_GRADIENT)
        translation = lower(part, inputs=list(inputs), outputs=outputs, optional=inputs.keys() - {first}, late=late)
        return Lowered(signature.inputs, signature.outputs, part, translation)

    def check_effect(self, part: str, parameters: Mapping[str, Tensor], trained: Collection[str]) -> None:
        """Raise ModelInvalid for a parameter that is to be trained, is not, and is not used without a gradient."""
        for name, value in parameters.items():
            used = bool(self.node(Role.PARAMETER.tensor_name(name)).users)
            if value.requires_grad and name not in trained and not used:
                raise ModelInvalid(
                    f"parameter {part}.{name} gets no gradient: it has no effect on the loss; remove it, or set "
                    "requires_grad_(False)"
                )


class ModelPart:
    """A module that is trained as one part: `encoder` or `head.<task>`."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.parameters = dict(sorted(module.named_parameters()))
        self.state = running_statistics(module)
        """The running statistics that it reads."""
        with in_training(module):
            self.moving = moving_statistics(module)
            """Those that training moves."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and state by their names on the wire."""
        parameters = {f"{self.name}.{name}": value.detach() for name, value in self.parameters.items()}
        return parameters | {f"state.{self.name}.{name}": value for name, value in self.state.items()}

    def own(self, values: Mapping[str, Tensor], prefix: str = "") -> Results:
        """Return this part's parameters, or its state with `prefix` STATE, of tensors by their names on the wire."""
        part = f"{prefix}{self.name}"
        return {name.removeprefix(f"{part}."): value for name, value in values.items() if part_of(name) == part}

    def run(self, value: Any, parameters: Results, state: Results) -> Run:
        """Run the module, without side effects, in the mode in which it is; the state is what it moves.

        `value` is what it is called with, or inputs by their names in graphs.
        """
        with moving() as moved, substituted(self.module, parameters | state):
            result = apply(self.module, value) if isinstance(value, Mapping) else self.module(value)
        following = state | moved.of(self.module)
        return Run(result, parameters, {name: value for name, value in following.items() if name in self.moving})

    def traced(
        self, sources: Sources, function: Callable[[Sources, Callable[[Any], Run]], Results], *, training: bool
    ) -> Traced:
        """Trace `function(sources, run)`, where `run(value)` runs the module; it gives outputs by name.

        Inputs are the sources and the part's parameters and state.
        """
        with in_training(self.module):
            if not training:
                self.module.eval()
            with noticing_modes(self.module) as differ:
                found = traced(sources, self.parameters, self.state, self.run, function, self.root)
        return replace(found, of_both_modes=not differ())

    @property
    def root(self) -> nn.Module:
        """A module from which the paths of the part's modules are counted."""
        return nn.ModuleDict({self.name.replace(".", "/"): self.module})


def traced(
    sources: Sources,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    run: Callable[[Any, Results, Results], Run],
    function: Callable[[Sources, Callable[[Any], Run]], Results],
    root: nn.Module,
    first_draw: int = 0,
) -> Traced:
    """Trace `function(sources, run)`, where `run(value)` is given parameters and state.

    `root` and `first_draw` are those of `export.trace.trace`.
    """
    names: list[str] = []

    def whole(*values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        data, known, held = ({name: next(rest) for name in group} for group in (sources, parameters, state))
        results = function(data, lambda value: run(value, known, held))
        names[:] = results
        return tuple(results.values())

    def inputs(batch: int) -> list[Tensor]:
        data = [
            torch.zeros((batch, *value.shape[1:]), dtype=value.dtype, requires_grad=value.requires_grad)
            for value in sources.values()
        ]
        return [*data, *parameters.values(), *state.values()]

    found = trace(whole, inputs, root, first_draw)
    given = (*sources, *map(Role.PARAMETER.tensor_name, parameters), *map(Role.STATE.tensor_name, state))
    return Traced(given, tuple(names), found)
