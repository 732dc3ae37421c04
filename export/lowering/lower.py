"""The loop over a trace that turns each operator into ONNX nodes by its rule."""

import dataclasses
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from export.errors import OperatorUnsupported, described
from export.lowering import (
    batch_normalization,
    complex_numbers,
    convolution,
    division,
    dropout,
    normalization,
    ort_training,
    padding,
    pointwise,
    recurrence,
    reduction,
    resample,
    selection,
    shaping,
)
from export.lowering.context import SEED, Call, Context, Rule, RuleBook, Untranslatable, Value
from export.onnx_graph import ELEMENT, OnnxGraph
from export.trace import Batch, Trace, TraceStep

RULES = RuleBook()
for family in (
    batch_normalization,
    division,
    dropout,
    convolution,
    normalization,
    padding,
    pointwise,
    recurrence,
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
    "randperm": "an order cannot be drawn: use torch.rand(…) and sort it",
    "multinomial": "use the Gumbel trick: argmax of the logits less log(−log(torch.rand_like(…)))",
    "rnn_layer": "unroll the layer: for step in range(…) with nn.LSTMCell or nn.GRUCell",
    "linalg_": "use a few steps of Newton's iteration with matrix products, or compute it before training",
    "cholesky": "predict the factor itself, as a triangle (torch.tril)",
    "fractional_max_pool": "use nn.MaxPool2d, or nn.AdaptiveMaxPool2d for a fixed size",
    "ctc": "use F.ctc_loss with targets (B, S) and lengths as tensors",
    "segment_reduce": "use torch.scatter_reduce",
    "gamma": "use torch.log and torch.exp",
    "nextafter": "add a small number",
    "frexp": "use torch.log2 and torch.floor",
    "renorm": "divide by torch.linalg.vector_norm(…).clamp(min=…)",
    "nonzero": "the shape depends on the data: use a mask and torch.where",
    "_batch_norm": "use nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d",
}

ALONG = frozenset(
    {
        *("_log_softmax", "_log_softmax_backward_data", "_safe_softmax", "_softmax", "_softmax_backward_data", "amax"),
        *("amin", "any", "argmax", "argmin", "cumsum", "flip", "gather", "index", "index_put", "max", "mean", "min"),
        *("prod", "roll", "scatter", "scatter_add", "scatter_reduce", "sort", "std", "std_mean", "sum", "topk"),
        *("var", "var_mean"),
    }
)
"""Operators along a dimension; a tensor without dimensions is a vector of one to them."""


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
    context = Context(graph, inputs[0], lambda body, **names: lower(body, rules=rules, **names).model)
    values: dict[fx.Node, Any] = {}
    for name, step in zip(inputs, trace.inputs, strict=True):
        assert step.shapes[0] is not None
        assert step.dtypes[0] is not None
        values[step.node] = Value(name, step.shapes[0], step.dtypes[0])
    for node, tensor in trace.constants:
        values[node] = _constant(context, tensor.detach())
    used = _used(trace)
    first_draws: dict[str, int] = {}
    for step in trace.steps:
        if step.target is operator.getitem:
            values[step.node] = values[step.args[0]][step.args[1]]
            continue
        name, draw = SEED, step.draw
        if seed is not None:
            name = seed(step.module)
            draw -= first_draws.setdefault(name, step.draw)
        call = Call(str(step.target), step.module, step.shapes, step.dtypes, used[step.node], draw, name)
        first = len(graph.nodes)
        values[step.node] = _translated(context, step, call, values, rules)
        for node in graph.nodes[first:] if located else ():
            node.doc_string = step.module
    results = [_resolve(node, values) for node in trace.outputs]
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        for value in node.input if node.op_type in PRODUCTS else ():
            readers[value].append(node)
    for i, (name, value) in enumerate(zip(outputs, results, strict=True)):
        # A fresh node for each output: an input, or a value used twice, can then be an output as well.
        results[i] = Value(graph.add_many("Identity", value.name, outputs=1)[0], value.shape, value.dtype)
        graph.nodes[-1].output[0] = name
        _read_output(graph.nodes, value.name, readers.pop(value.name, []))
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


def _read_output(nodes: list[onnx.NodeProto], inner: str, products: Sequence[onnx.NodeProto]) -> None:
    """Let matrix products read an output, which the last node copies from an inner value, instead of that value.

    onnxruntime 1.31 joins the copy with the node before it, and a transposition with the product; after both, the
    product reads a value that is no longer there.
    """
    copy = nodes[-1]
    makers = [i for i, node in enumerate(nodes) if inner in node.output] if products else []
    if makers:
        for node in products:
            node.input[:] = [copy.output[0] if name == inner else name for name in node.input]
        nodes.insert(makers[0] + 1, nodes.pop())


def _constant(context: Context, tensor: Tensor) -> Value:
    if tensor.is_complex():
        return complex_numbers.constant(context, tensor)
    return Value(context.graph.constant(tensor.numpy()), tuple(tensor.shape), tensor.dtype)


def _translated(
    context: Context, step: TraceStep, call: Call, values: dict[fx.Node, Any], rules: Mapping[Any, Rule]
) -> Any:
    """Return the values that an operator's rule writes."""
    args, kwargs = _resolve(step.args, values), _resolve(step.kwargs, values)
    rule = (complex_numbers.RULES if complex_numbers.involves(args, step.dtypes) else rules).get(step.target)
    if rule is None:
        raise unsupported(step)
    try:
        _check_types(step)
        scalar = args and isinstance(args[0], Value) and not args[0].rank
        if scalar and call.operator.split(".")[1] in ALONG:
            return _along_one(context, rule, call, args, kwargs)
        return _values(rule(context, call, *args, **kwargs), call)
    except Exception as exc:  # Untranslatable, or that of a rule that does not know this form of its operator
        raise _untranslated(step, exc) from exc


def _along_one(context: Context, rule: Rule, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the values of an operator along a tensor without dimensions, as along a vector of one."""
    vectors = dataclasses.replace(call, shapes=tuple(None if shape is None else shape or (1,) for shape in call.shapes))
    found = rule(context, vectors, *(_vector(context, value) for value in args), **kwargs)
    names = (found,) if isinstance(found, str) else found
    scalars = tuple(
        name if name is None else context.reshape(name, shape or ())
        for name, shape in zip(names, call.shapes, strict=True)
    )
    return _values(scalars[0] if isinstance(found, str) else scalars, call)


def _vector(context: Context, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_vector(context, item) for item in value)
    if isinstance(value, Value) and not value.rank:
        return Value(context.reshape_to(value.name, 1), (1,), value.dtype)
    return value


def _check_types(step: TraceStep) -> None:
    for dtype in step.dtypes:
        if dtype is not None and dtype not in ELEMENT and dtype not in complex_numbers.COMPLEX:
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
