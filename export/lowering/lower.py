"""The loop over a trace that turns each operator into ONNX nodes by its rule."""

import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import fx

from export.errors import OperatorUnsupported, described
from export.lowering import (
    batch_normalization,
    convolution,
    dropout,
    normalization,
    ort_training,
    padding,
    pointwise,
    reduction,
    resample,
    selection,
    shaping,
)
from export.lowering.context import SEED, Call, Context, RuleBook, Untranslatable, Value
from export.onnx_graph import ELEMENT, OnnxGraph
from export.trace import Batch, Trace, TraceStep

RULES = RuleBook()
for family in (
    batch_normalization,
    dropout,
    convolution,
    normalization,
    padding,
    pointwise,
    reduction,
    resample,
    selection,
    shaping,
):
    RULES.update(family.RULES)
ORT_TRAINING = RuleBook(RULES | ort_training.RULES)
"""The rules for a forward pass that onnxruntime-training differentiates."""

PRODUCTS = frozenset({"Gemm", "MatMul"})

ADVICE = {
    "dropout": "use nn.Dropout, nn.Dropout2d or their functions",
    "bernoulli": "use nn.Dropout, nn.Dropout2d or their functions",
    "rand": "use nn.Dropout, nn.Dropout2d or their functions",
    "grid_sampler": "use F.interpolate: where pixels come from may not depend on the data",
    "affine_grid": "use F.interpolate: where pixels come from may not depend on parameters",
    "rnn_layer": "recurrent layers are not exported: use convolutions or attention",
    "unsafe_split": "recurrent layers are not exported: use convolutions or attention; or use torch.split",
    "topk": "the order depends on the data: use max, argmax or a mask",
    "sort": "the order depends on the data: use max, argmax or a mask",
    "weight_norm": "normalise the weight in forward, or use a normalisation of activations",
    "3d": "only one and two dimensions are exported: view the data as an image, of height one perhaps",
    "_aa.": "use antialias=False",
    "aten.unfold": "use F.unfold, or slices",
    "in1d": "use comparisons and torch.where",
    "nonzero": "the shape depends on the data: use a mask and torch.where",
}


@dataclass(frozen=True)
class Translation:
    """The ONNX model of a trace, and what it calls the results of operators that have one."""

    model: onnx.ModelProto
    names: Mapping[fx.Node, str]


def unsupported(step: TraceStep) -> OperatorUnsupported:
    """Return the error for an operator without a rule."""
    name = str(step.target)
    advice = next((text for part, text in ADVICE.items() if part in name), "write it with other operators of torch")
    if isinstance(step.target, torch._ops.OpOverload) and step.target._schema.is_mutable:
        advice = "it changes a buffer, and only parameters may change: keep what it counts out of the model"
    return OperatorUnsupported(name, step.module or "the model", advice)


def _untranslated(step: TraceStep, exc: Exception) -> OperatorUnsupported:
    advice = str(exc)
    if not isinstance(exc, Untranslatable):
        advice = f"it is not known in this form ({described(exc)}): write it with other operators of torch"
    return OperatorUnsupported(str(step.target), step.module, advice)


def lower(
    trace: Trace,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    optional: Collection[str] = (),
    rules: RuleBook = RULES,
    located: bool = False,
    seed: Callable[[str], str] | None = None,
    late: Collection[str] = (),
) -> Translation:
    """Translate a trace into an ONNX model with these names for its inputs and outputs, in order.

    The first input's first dimension is the micro-batch. An `optional` input that nothing uses is left out. `located`
    writes into each node's doc_string which module it comes from. `seed` names the input that fixes what a module's
    random operators draw, which are then counted for each such input; else there is one for all. `late` are inputs by
    which the engine is to be led (export.onnx_graph.lazily). Raises OperatorUnsupported for an operator without a rule.
    """
    graph = OnnxGraph()
    context = Context(graph, inputs[0])
    values: dict[fx.Node, Any] = {}
    for name, step in zip(inputs, trace.inputs, strict=True):
        assert step.shapes[0] is not None
        assert step.dtypes[0] is not None
        values[step.node] = Value(name, step.shapes[0], step.dtypes[0])
    for node, tensor in trace.constants:
        values[node] = Value(graph.constant(tensor.detach().numpy()), tuple(tensor.shape), tensor.dtype)
    used = _used(trace)
    first_draws: dict[str, int] = {}
    for step in trace.steps:
        if step.target is operator.getitem:
            values[step.node] = values[step.args[0]][step.args[1]]
            continue
        rule = rules.get(step.target)
        if rule is None:
            raise unsupported(step)
        name, draw = SEED, step.draw
        if seed is not None:
            name = seed(step.module)
            draw -= first_draws.setdefault(name, step.draw)
        call = Call(str(step.target), step.module, step.shapes, step.dtypes, used[step.node], draw, name)
        args, kwargs = _resolve(step.args, values), _resolve(step.kwargs, values)
        first = len(graph.nodes)
        try:
            _check_types(step)
            values[step.node] = _values(rule(context, call, *args, **kwargs), call)
        except Exception as exc:  # Untranslatable, or that of a rule that does not know this form of its operator
            raise _untranslated(step, exc) from exc
        for node in graph.nodes[first:] if located else ():
            node.doc_string = step.module
    results = [_resolve(node, values) for node in trace.outputs]
    for i, (name, value) in enumerate(zip(outputs, results, strict=True)):
        # A fresh node for each output: an input, or a value used twice, can then be an output as well.
        results[i] = Value(graph.add_many("Identity", value.name, outputs=1)[0], value.shape, value.dtype)
        graph.nodes[-1].output[0] = name
        _read_output(graph.nodes, value.name)
    sources = [(name, *_spec(values[step.node])) for name, step in zip(inputs, trace.inputs, strict=True)]
    sources += [(name, ELEMENT[torch.int64], []) for name in context.seeds]
    model = graph.model(
        sources,
        [(name, *_spec(value)) for name, value in zip(outputs, results, strict=True)],
        late,
    )
    used_names = {name for node in model.graph.node for name in node.input}
    kept = [spec for spec in model.graph.input if spec.name in used_names or spec.name not in optional]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.checker.check_model(model)
    return Translation(model, {node: value.name for node, value in values.items() if isinstance(value, Value)})


def _read_output(nodes: list[onnx.NodeProto], inner: str) -> None:
    """Let matrix products read an output, which the last node copies from an inner value, instead of that value.

    onnxruntime 1.31 joins the copy with the node before it, and a transposition with the product; after both, the
    product reads a value that is no longer there.
    """
    copy = nodes[-1]
    products = [node for node in nodes if node.op_type in PRODUCTS and inner in node.input]
    makers = [i for i, node in enumerate(nodes) if inner in node.output]
    if products and makers:
        for node in products:
            node.input[:] = [copy.output[0] if name == inner else name for name in node.input]
        nodes.insert(makers[0] + 1, nodes.pop())


def _check_types(step: TraceStep) -> None:
    for dtype in step.dtypes:
        if dtype is not None and dtype not in ELEMENT:
            raise Untranslatable(f"its result is {dtype}: use float32, int64 or bool")


def _used(trace: Trace) -> defaultdict[fx.Node, frozenset[int]]:
    found: defaultdict[fx.Node, frozenset[int]] = defaultdict(lambda: frozenset({0}))
    for step in trace.steps:
        if step.target is operator.getitem:
            source, index = step.args
            found[source] = found.get(source, frozenset()) | {index}
    return found


def _values(result: Any, call: Call) -> Any:
    if isinstance(result, str):
        return Value(result, call.shape, call.dtype)
    return tuple(
        None if name is None or shape is None or dtype is None else Value(name, shape, dtype)
        for name, shape, dtype in zip(result, call.shapes, call.dtypes, strict=True)
    )


def _resolve(argument: Any, values: dict[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, dict):
        return {key: _resolve(value, values) for key, value in argument.items()}
    if isinstance(argument, list | tuple):
        return type(argument)(_resolve(value, values) for value in argument)
    return argument


def _spec(value: Value) -> tuple[int, list[int | str]]:
    shape: list[int | str] = [f"batch_{int(dim.factor)}" if isinstance(dim, Batch) else dim for dim in value.shape]
    assert value.dtype in ELEMENT, f"{value.dtype} has no ONNX type"
    return ELEMENT[value.dtype], shape
