"""A function of tensors as one graph of ATen operators, with the micro-batch left open.

The function is traced twice with fake tensors, at two batch sizes, below autograd, so that what autograd does is in the
graph too. The two graphs must agree operator by operator. An integer that differs between them must be a multiple of
the batch and is kept as `Batch`; a number that differs must be proportional, or inversely proportional, to it. Anything
else depends on the batch size in a way that one graph cannot express, and is refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.traceback
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from export.decompositions import DECOMPOSED
from export.decompositions.noise import DRAWN
from export.errors import ExportError, ModelInvalid, described
from export.functions import Rewritten

ALIKE = "treat samples alike: sums, means and the largest over the batch, or orders and medians along other dimensions"
"""What a model is to do instead of what one graph cannot express for all batch sizes."""
SIZES = (3, 5)
"""The two batch sizes: coprime, so that a multiple of one is no multiple of the other."""


@dataclass(frozen=True)
class Batch:
    """A number that varies with the micro-batch B: factor · B, or factor / B where `inverse`."""

    factor: float
    inverse: bool = False


Dim = int | Batch


@dataclass(frozen=True)
class TraceStep:
    """One operator of the merged graph; `args` and `kwargs` hold nodes, numbers and `Batch`."""

    node: fx.Node
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[Dim, ...] | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    module: str
    """The path of the module that ran the operator, or whose operator it differentiates."""
    draw: int
    """The number of random operators before it."""

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        """The nodes whose results it uses."""
        return tuple(self.node.all_input_nodes)


@dataclass(frozen=True)
class Trace:
    """A traced function: its input nodes, its operators in order and its outputs."""

    inputs: tuple[TraceStep, ...]
    constants: tuple[tuple[fx.Node, torch.Tensor], ...]
    steps: tuple[TraceStep, ...]
    outputs: tuple[Any, ...]

    def part(self, inputs: Sequence[fx.Node], outputs: Sequence[Any]) -> "Trace":
        """Return the operators that compute some of the nodes from others, in the same order."""
        steps = {step.node: step for step in (*self.inputs, *self.steps)}
        needed = {node for node in outputs if isinstance(node, fx.Node)}
        kept = []
        for step in reversed(self.steps):
            if step.node in needed and step.node not in inputs:
                kept.append(step)
                needed.update(step.sources)
        constants = tuple((node, value) for node, value in self.constants if node in needed)
        return Trace(tuple(steps[node] for node in inputs), constants, tuple(kept[::-1]), tuple(outputs))


def trace(
    function: Callable[..., Any], inputs: Callable[[int], Sequence[torch.Tensor]], root: nn.Module, first_draw: int = 0
) -> Trace:
    """Trace `function(*inputs(batch))`; `root` is where module paths are counted from.

    Its random operators are counted from `first_draw`. Raises ModelInvalid where the function depends on its data or on
    the batch size in a way no graph can express.
    """
    first, second = (_trace_once(function, inputs, size, root) for size in SIZES)
    return _merge(first, second, first_draw)


def replay(steps: Sequence[TraceStep], known: Mapping[fx.Node, Any], batch: int) -> dict[fx.Node, Any]:
    """Run operators again, so that autograd sees them or they are traced anew; the results of all by node.

    `known` has what they use and do not compute. Their modules stay theirs.
    """
    found = dict(known)
    for step in steps:
        torch.fx.traceback.current_meta["nn_module_stack"] = {step.module: (step.module, "")}
        args, kwargs = bound(step, found, batch)
        found[step.node] = step.target(*args, **kwargs)
    torch.fx.traceback.current_meta["nn_module_stack"] = {"": ("", "")}
    return found


def bound(step: TraceStep, found: Mapping[fx.Node, Any], batch: int) -> tuple[list[Any], dict[str, Any]]:
    """Return an operator's arguments with the values found for their nodes, for a batch size."""

    def value(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return found[argument]
        if isinstance(argument, Batch):
            number = argument.factor / batch if argument.inverse else argument.factor * batch
            return int(number) if number.is_integer() else number
        if isinstance(argument, dict):
            return {key: value(item) for key, item in argument.items()}
        if isinstance(argument, list | tuple):
            return [value(item) for item in argument]
        return argument

    args = [value(argument) for argument in step.args]
    if step.target is torch.ops.aten.view.default and not _can_be_viewed(args[0], args[1]):
        args[0] = args[0].contiguous()
    return args, value(step.kwargs)


def _can_be_viewed(x: torch.Tensor, shape: Sequence[int]) -> bool:
    """Return whether x's strides allow this shape.

    A value that crosses a cut is contiguous, also where it was not in the trace, and what is transposed from it is not.
    """
    if x.is_contiguous():
        return True
    with _disable_current_modes():
        try:
            torch.empty_strided(x.shape, x.stride(), device="meta").view(shape)
        except RuntimeError:
            return False
    return True


def _trace_once(
    function: Callable[..., Any], inputs: Callable[[int], Sequence[torch.Tensor]], size: int, root: nn.Module
) -> fx.GraphModule:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad) for tensor in inputs(size)]
    path: list[str] = [""]

    def note() -> None:
        torch.fx.traceback.current_meta["nn_module_stack"] = {path[-1]: (path[-1], "")}

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            path.append(name)
            note()

        return hook

    def leave(*_: Any) -> None:  # not called where the module raises: the path then says which one it was
        path.pop()
        note()

    hooks = []
    for name, module in root.named_modules():
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        rewritten = Rewritten(lambda: path[-1] or "the model")
        kept = torch.fx.traceback.preserve_node_meta()
        with mode, rewritten, sdpa_kernel(SDPBackend.MATH), without_fast_paths(), kept:
            note()
            traced = make_fx(function, DECOMPOSED, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
            if any(_in_place(node) for node in traced.graph.nodes):
                # Traced again with results instead of changes; the interpreter hands the module paths on.
                pure = torch.func.functionalize(fx.Interpreter(traced).run, remove="mutations")
                with torch.no_grad():  # what autograd does is in the graph already
                    traced = make_fx(pure, DECOMPOSED, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
    except ExportError:
        raise
    except Exception as exc:  # the module's own, torch's, or one of a decomposition
        raise _untraceable(_dotted(path[-1]) or "the model", size, exc) from exc
    finally:
        for hook in hooks:
            hook.remove()
    traced.graph.eliminate_dead_code()
    return traced


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Let attention in evaluation mode run the operators that it runs in training, not one of its own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _dotted(module: str) -> str:
    """Return a module's path as users know it: in a root of modules, a part's name has no dot."""
    return module.replace("/", ".")


def _untraceable(where: str, samples: int, exc: Exception) -> ModelInvalid:
    if isinstance(exc, DataDependentOutputException | DynamicOutputShapeException):
        return ModelInvalid(
            f"the control flow or a shape in {where} depends on the data ({exc}): use torch.where, or masks"
        )
    return ModelInvalid(
        f"{where} cannot be traced or differentiated with {samples} samples: {described(exc)}; use operators of torch "
        "alone, for any number of samples"
    )


def _in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001


def _merge(first: fx.GraphModule, second: fx.GraphModule, draw: int) -> Trace:
    ours, others = list(first.graph.nodes), list(second.graph.nodes)
    if [n.target for n in ours if n.op == "call_function"] != [n.target for n in others if n.op == "call_function"]:
        raise ModelInvalid(
            "the model runs other operators for another batch size: its control flow must not depend on it, as a loop "
            f"over samples does; {ALIKE}"
        )
    inputs: list[TraceStep] = []
    steps: list[TraceStep] = []
    constants: list[tuple[fx.Node, torch.Tensor]] = []
    outputs: tuple[Any, ...] = ()
    modules: dict[fx.Node, str] = {}
    for node, other in zip(ours, others, strict=True):
        modules[node] = _module(node, modules)
        if node.op == "output":
            outputs = tuple(node.args[0])
            continue
        if node.op == "get_attr":
            constants.append((node, getattr(first, node.target)))
            if not _alike(constants[-1][1], getattr(second, other.target)):
                where = _dotted(modules[node])
                raise ExportError(f"a constant that {where} makes must not follow the batch: {ALIKE}")
            continue
        where = f"{node.target} in {_dotted(modules[node])}"
        shapes, dtypes = _results(node.meta.get("val"), other.meta.get("val"), where)
        step = TraceStep(
            node=node,
            target=node.target,
            args=_merged(node.args, other.args, where),
            kwargs=_merged(dict(node.kwargs), dict(other.kwargs), where),
            shapes=shapes,
            dtypes=dtypes,
            module=modules[node],
            draw=draw,
        )
        draw += node.target in DRAWN
        (inputs if node.op == "placeholder" else steps).append(step)
    return Trace(inputs=tuple(inputs), constants=tuple(constants), steps=tuple(steps), outputs=outputs)


def _alike(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())


def _module(node: fx.Node, known: dict[fx.Node, str]) -> str:
    """Return the module of a forward operator; a backward one has that of the operator whose results it uses."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(iter(stack), "")
    if path:
        return str(path)
    sources = [known[n] for n in node.all_input_nodes if known.get(n) and n.op == "call_function"]
    return sources[-1] if sources else "the model"


def _results(value: Any, other: Any, where: str) -> tuple[tuple[tuple[Dim, ...] | None, ...], tuple[Any, ...]]:
    values = value if isinstance(value, tuple | list) else (value,)
    others = other if isinstance(other, tuple | list) else (other,)
    shapes, dtypes = [], []
    for one, two in zip(values, others, strict=True):
        tensor = isinstance(one, torch.Tensor)
        shapes.append(_merged(tuple(one.shape), tuple(two.shape), where) if tensor else None)
        dtypes.append(one.dtype if tensor else None)
    return tuple(shapes), tuple(dtypes)


def _merged(one: Any, two: Any, where: str) -> Any:
    if isinstance(one, dict):
        return {key: _merged(one[key], two[key], where) for key in one}
    if isinstance(one, tuple | list):
        if len(one) != len(two):
            raise ExportError(
                f"{where} has {len(one)} parts for {SIZES[0]} samples and {len(two)} for {SIZES[1]}: how many there are"
                f" must not follow the batch: {ALIKE}"
            )
        merged = [_merged(a, b, where) for a, b in zip(one, two, strict=True)]
        return tuple(merged) if isinstance(one, tuple) else merged
    if isinstance(one, fx.Node) or one == two or type(one) is not type(two):
        return one
    if isinstance(one, float) and math.isnan(one) and math.isnan(two):
        return one
    if isinstance(one, int | float) and not isinstance(one, bool):
        small, large = SIZES
        if one * large == two * small:
            return Batch(one / small)
        if isinstance(one, float) and abs(one * small - two * large) <= 1e-12 * abs(one * small):
            return Batch(one * small, inverse=True)
    raise ExportError(
        f"{where} uses {one} for {SIZES[0]} samples and {two} for {SIZES[1]}, neither fixed nor proportional: {ALIKE}"
    )
