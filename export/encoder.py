"""The encoder in training as a chain of stages, each with the four graphs of edge_runtime.wire.graph_names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edge_runtime.wire import manifest as wire
from edge_runtime.wire.graph_names import is_input
from export.errors import ModelInvalid
from export.model import apply, numbered, tensors
from export.model_part import Lowered, ModelPart, Results, Run, Sources, Traced, traced
from export.module_state import in_training, substituted
from export.running_statistics import moving
from export.saved_activations import saved_nodes
from export.signature import Role
from export.stages import ForwardSegment, cut
from export.trace import Batch, replay, without_fast_paths


@dataclass(frozen=True)
class TracedStage:
    """One stage: its operators, the values that it reads and writes by name, its parameters and its state.

    `trained` are those of its parameters that are. A `forward_only` stage has nothing trained in it or before it.
    """

    segment: ForwardSegment
    reads: Mapping[str, fx.Node]
    writes: Mapping[str, fx.Node]
    parameters: tuple[str, ...]
    trained: tuple[str, ...]
    state: tuple[str, ...]
    forward_only: bool

    @property
    def described(self) -> wire.Stage:
        """The stage in the manifest."""
        return wire.Stage(reads=tuple(self.reads), writes=tuple(self.writes), parameters=self.trained)


class StagedEncoder:
    """An encoder cut into stages: at most `stages`, or, with None, as many as keep its peak low.

    It starts from `sources` by their names in its graphs: the model's inputs, or e, which a stem has made of them; then
    the graphs give ∂L/∂e too.

    Stages are differentiated by running their operators again. That does not show what a module does without gradient
    to what is trained (torch.no_grad, torch.autograd.Function): such an encoder is one stage, which runs the module.
    """

    def __init__(self, part: ModelPart, sources: Mapping[str, Tensor], stages: int | None = None) -> None:
        self._part = part
        self._sources = dict(sources)
        self._without_gradient = {name for name in sources if is_input(name)}
        of_source = not self._without_gradient
        self._whole = part.traced(self._sources, _forward, training=True)
        self._source_names = {self._whole.node(name): name for name in sources}
        self._trained, self._hidden = _effect(part, sources, of_source=of_source)
        self._whole.check_effect(part.name, part.parameters, self._trained)
        self._steps = {step.node: step for step in self._whole.trace.steps}
        z = self._whole.outputs_of(Role.VALUE)
        self._names: dict[fx.Node, list[str]] = {}
        for name in z:
            self._names.setdefault(self._whole.node(name), []).append(name)
        segments = cut(
            self._whole.trace,
            list(self._source_names),
            [self._whole.node(name) for name in z],
            1 if self._hidden else stages,
            fixed=self._fixed_nodes(),
            state=[self._whole.node(Role.STATE.tensor_name(name)) for name in part.moving],
            of_source=of_source,
        )
        crossing = [node for segment in segments for node in segment.writes if node not in self._names]
        self._names |= {node: [f"v.{i}"] for i, node in enumerate(crossing)}
        self.values = tuple(wire.Array(shape=self._shape(node), dtype="float32") for node in crossing)
        self.stages: tuple[TracedStage, ...] = ()
        for segment in segments:
            self.stages += (self._stage(segment, last=segment is segments[-1]),)

    def predict(self) -> Lowered:
        """Return the graph of the whole encoder in evaluation mode."""
        if self._whole.of_both_modes:
            return self._whole.graph(self._whole.outputs_of(Role.VALUE))
        return self._part.traced(self._sources, _represent, training=False).graph()

    def graphs(self, k: int) -> dict[str, Lowered]:
        """Return a stage's graphs by their kinds. Raises ModelInvalid or OperatorUnsupported."""
        stage = self.stages[k]
        joint = self._joint(stage)
        forward = joint.outputs_of(Role.VALUE, Role.NEXT_STATE)
        if stage.forward_only:
            return {"forward": joint.graph(forward)}
        backward = joint.outputs_of(Role.VALUE_GRADIENT, Role.PARAMETER_GRADIENT)
        arriving = joint.inputs_of(Role.VALUE_GRADIENT)
        written = {joint.node(name): name for name in stage.writes}
        saved: dict[str, fx.Node] = {}
        given: dict[str, fx.Node] = {}
        for node in saved_nodes(joint.trace, [joint.node(name) for name in arriving]):
            if node in written:
                given[written[node]] = node
            else:
                saved[Role.SAVED.tensor_name(str(len(saved)))] = node
        return {
            "forward": joint.graph(forward),
            "backward": joint.graph(backward),
            "keep": joint.graph([*forward, *saved], saved),
            "kept": joint.graph(backward, {**given, **saved}, first=self._batched(joint, arriving)),
        }

    @property
    def is_trained(self) -> bool:
        """Return whether there is anything to train in it or before it."""
        return not self.stages[-1].forward_only

    @staticmethod
    def _batched(joint: Traced, arriving: list[str]) -> str:
        used = {source for step in joint.trace.steps for source in step.sources}
        return next(name for name in arriving if joint.node(name) in used)

    def _stage(self, segment: ForwardSegment, *, last: bool) -> TracedStage:
        used = {source for step in segment.steps for source in step.sources}
        inside = {step.node for step in segment.steps}

        def used_ones(role: Role, names: Mapping[str, Tensor]) -> tuple[str, ...]:
            return tuple(name for name in names if self._whole.node(role.tensor_name(name)) in used)

        state = [
            name
            for name in sorted(self._part.moving)
            if (node := self._whole.node(Role.NEXT_STATE.tensor_name(name))) in inside
            or (last and node not in self._steps)
        ]
        parameters = used_ones(Role.PARAMETER, self._part.parameters)
        trained = tuple(name for name in parameters if name in self._trained)
        before = self.stages[-1].forward_only if self.stages else bool(self._without_gradient)
        return TracedStage(
            segment=segment,
            reads={self._source_names.get(node) or self._names[node][0]: node for node in segment.reads},
            writes={name: node for node in segment.writes for name in self._names[node]},
            parameters=parameters,
            trained=trained,
            state=tuple(sorted({*state, *used_ones(Role.STATE, self._part.state)})),
            forward_only=before and not trained,
        )

    def _fixed_nodes(self) -> frozenset[fx.Node]:
        """Return the inputs that training does not change."""
        names = [*map(Role.PARAMETER.tensor_name, self._part.parameters.keys() - self._trained)]
        names += map(Role.STATE.tensor_name, self._part.state.keys() - self._part.moving)
        return frozenset(self._whole.node(name) for name in names)

    def _joint(self, stage: TracedStage) -> Traced:
        """Trace forward and backward pass of a stage as one function; its graphs are parts of that."""
        steps = stage.segment.steps
        constants = dict(self._whole.trace.constants)
        fixed = {name for before in self.stages if before.forward_only for name in before.writes}
        fixed |= self._without_gradient

        def run_module(values: Sources, parameters: Results, state: Results) -> Run:
            done = self._part.run({name: values[name] for name in self._sources}, parameters, state)
            return Run(numbered("z", tensors(done.result)), parameters, done.state)

        def run_steps(values: Sources, parameters: Results, state: Results) -> Run:
            known: dict[fx.Node, Any] = {**constants, **{stage.reads[name]: values[name] for name in stage.reads}}
            known |= {self._whole.node(Role.PARAMETER.tensor_name(name)): value for name, value in parameters.items()}
            known |= {self._whole.node(Role.STATE.tensor_name(name)): value for name, value in state.items()}
            batch = next(iter(values.values())).shape[0]
            found = replay(steps, known, batch)
            moving = [name for name in state if name in self._part.moving]
            moved = {name: found[self._whole.node(Role.NEXT_STATE.tensor_name(name))] for name in moving}
            return Run({name: found[node] for name, node in stage.writes.items()}, parameters, moved)

        def joint(data: Sources, call: Callable[[Any], Run]) -> Results:
            done = call({name: data[name] for name in stage.reads})
            if stage.forward_only:
                return {**done.result, **done.next_state()}
            live = {name: value for name, value in done.result.items() if value.requires_grad}
            leaves = {name: data[name] for name in stage.reads if name not in fixed}
            arriving = [data[Role.VALUE_GRADIENT.tensor_name(name)] for name in live]
            gradients = done.gradients(self._part.name, list(live.values()), arriving, leaves)
            zeros = {Role.VALUE_GRADIENT.tensor_name(name): torch.zeros_like(leaf) for name, leaf in leaves.items()}
            return {**done.result, **done.next_state(), **zeros, **gradients}

        sources = {name: self._example(node).requires_grad_(name not in fixed) for name, node in stage.reads.items()}
        sources |= {Role.VALUE_GRADIENT.tensor_name(name): self._example(node) for name, node in stage.writes.items()}
        return traced(
            sources,
            {name: self._parameter(name) for name in stage.parameters},
            {name: self._part.state[name] for name in stage.state},
            run_module if self._hidden else run_steps,
            joint,
            self._part.root if self._hidden else nn.Module(),
            steps[0].draw if steps else 0,
        )

    def _parameter(self, name: str) -> Tensor:
        parameter = self._part.parameters[name]
        return parameter if name in self._trained else parameter.detach()

    def _example(self, node: fx.Node) -> Tensor:
        name = self._source_names.get(node)
        return torch.zeros((1, *self._shape(node)), dtype=self._sources[name].dtype if name else torch.float32)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        if node not in self._steps:
            return tuple(self._sources[self._source_names[node]].shape[1:])
        shape = self._steps[node].shapes[0] or ()
        return tuple(dim for dim in shape[1:] if not isinstance(dim, Batch))


def _effect(part: ModelPart, sources: Mapping[str, Tensor], *, of_source: bool) -> tuple[frozenset[str], bool]:
    """Return the parameters that the representation has a gradient of, and whether something hides gradients of these.

    Raises ModelInvalid for an embedding without effect.
    """
    wanted = frozenset(name for name, value in part.parameters.items() if value.requires_grad)
    trained, hidden = _run_with_gradients(part, sources, wanted, of_source=of_source)
    if trained < wanted and hidden:  # perhaps of those alone that get none
        trained, hidden = _run_with_gradients(part, sources, trained, of_source=of_source)
    return trained, hidden


def _run_with_gradients(
    part: ModelPart, sources: Mapping[str, Tensor], wanted: frozenset[str], *, of_source: bool
) -> tuple[frozenset[str], bool]:
    hiding = _Hiding()
    with in_training(part.module), FakeTensorMode(allow_non_fake_inputs=True) as mode, moving():
        leaves = {
            name: mode.from_tensor(value.detach()).requires_grad_(name in wanted)
            for name, value in part.parameters.items()
        }
        given = {name: mode.from_tensor(x.detach()).requires_grad_(of_source) for name, x in sources.items()}
        with substituted(part.module, leaves), without_fast_paths(), hiding:
            z = tensors(apply(part.module, given))
        live = [value for value in z if value.requires_grad]
        found = Run(z, leaves, {}).gradients(
            part.name, live, [torch.ones_like(value) for value in live], given if of_source else {}
        )
        if of_source and "de" not in found:
            raise ModelInvalid("the stem's embedding gets no gradient: it has no effect on the representation")
        return frozenset(Role.PARAMETER_GRADIENT.select(found)), hiding.seen or _has_own_backward(live)


GENERATED = "GeneratedBackwardFor_mas_edge_"
"""What torch names the functions of our own operators, whose gradients are in their formulas."""


class _Hiding(TorchFunctionMode):
    """Sees whether a function computes, without a gradient, with a tensor that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled():
            given = any(isinstance(value, Tensor) and value.requires_grad for value in tree_leaves((args, kwargs)))
            made = any(isinstance(value, Tensor) and value.is_floating_point() for value in tree_leaves(result))
            self.seen |= given and made
        return result


def _has_own_backward(values: Sequence[Tensor]) -> bool:
    """Return whether a torch.autograd.Function is among what computed the values."""
    pending = [value.grad_fn for value in values if value.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if isinstance(node, BackwardCFunction) and not type(node).__name__.startswith(GENERATED):
            return True
        more = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= more
        pending += more
    return False


def _forward(data: Sources, run: Callable[[Any], Run]) -> Results:
    done = run(data)
    return numbered("z", tensors(done.result)) | done.next_state()


def _represent(data: Sources, run: Callable[[Any], Run]) -> Results:
    return numbered("z", tensors(run(data).result))
