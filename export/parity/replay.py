"""The operators that a graph was translated from, run by PyTorch one after another on arrays."""

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from export.lowering.dropout import draws, threshold, uniforms
from export.model_part import Lowered
from export.parity.branch_decisions import deciding_arguments, deciding_values
from export.parity.terms import AbsoluteTerms
from export.trace import Batch, bound

aten = torch.ops.aten
Arrays = Mapping[str, NDArray[Any]]
MORE = {"forward": "keep", "loss": "step"}
"""Kinds of graphs, and those that compute the same and more from the same inputs."""
EVALUATING = ("evaluate", "predict")
"""Kinds of graphs that work on other values than the rest of their part, also where they share its operators."""


def replayed(
    graph: Lowered,
    inputs: Arrays,
    decided: Arrays,
    dtype: torch.dtype = torch.float32,
    terms: AbsoluteTerms | None = None,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the outputs of a graph by name, and this run's own values for those that are `decided`.

    These have the names that export.parity.branch_decisions.deciding_values gives them. Operators that decide by one of
    them get it as it was decided, and not as it is computed here. All numbers are of the type `dtype`; `terms` observes
    the operators.
    """
    trace = graph.trace
    given = {
        step.node: torch.from_numpy(np.asarray(inputs[name]))
        for name, step in zip(graph.inputs, trace.inputs, strict=True)
        if name in inputs
    }
    found = {node: _cast(value, dtype) for node, value in (*given.items(), *trace.constants)}
    told = {node: name for node, name in deciding_values(graph).items() if name in decided}
    forced = {node: _cast(torch.from_numpy(decided[name]), dtype) for node, name in told.items()}
    batch = _batch(graph, inputs)
    seed = int(inputs["seed"]) if "seed" in inputs else 0
    wanted = {node for node in trace.outputs if isinstance(node, fx.Node)} | told.keys()
    last_use = {node: i for i, step in enumerate(trace.steps) for node in step.sources}
    done = defaultdict(list)
    for node, i in last_use.items():
        if node not in wanted:
            done[i].append(node)
    with torch.no_grad():
        for i, step in enumerate(trace.steps):
            args, kwargs = bound(step, found, batch)
            if step.target is aten.bernoulli.p:
                ones = draws(seed, step.draw, args[0].numel()) < threshold(args[1] if len(args) > 1 else 0.5)
                found[step.node] = torch.from_numpy(ones).reshape(args[0].shape).to(args[0].dtype)
            elif step.target is aten.rand.default:
                drawn = uniforms(seed, step.draw, prod(args[0]))
                found[step.node] = torch.from_numpy(drawn).reshape(args[0]).to(dtype)
            else:
                for place, node in deciding_arguments(step).items():
                    args[place] = forced.get(node, args[place])
                args, kwargs = _typed(args, dtype), _typed(kwargs, dtype)
                found[step.node] = step.target(*args, **kwargs)
                if terms is not None:
                    terms.see(step, args, kwargs)
            for node in done[i]:
                del found[node]
    outputs = {name: found[node].numpy() for name, node in zip(graph.outputs, trace.outputs, strict=True)}
    return outputs, {name: found[node].numpy() for node, name in told.items()}


class SharedReplay:
    """Runs graphs by their names, as encoder_passes.RunByName; what several of a part have in common runs once.

    These are parts of one trace, so their operators are the same ones, on the same values in training, and on others
    in evaluation.
    """

    def __init__(self, graphs: Mapping[str, Lowered], dtype: torch.dtype) -> None:
        self._graphs, self._dtype = graphs, dtype
        self._found: dict[tuple[str, bool, fx.Node], NDArray[Any]] = {}

    def __call__(self, name: str, inputs: Arrays) -> Arrays:
        """Return the outputs of a graph by name."""
        part, _, kind = name.rpartition(".")
        graph, is_evaluating = self._graphs[name], kind in EVALUATING
        if not all((part, is_evaluating, node) in self._found for node in graph.trace.outputs):
            more = self._graphs.get(f"{part}.{MORE.get(kind, kind)}", graph)
            results, _ = replayed(more, inputs, {}, self._dtype)
            nodes = zip(more.outputs, more.trace.outputs, strict=True)
            self._found |= {(part, is_evaluating, node): results[output] for output, node in nodes}
        outputs = zip(graph.outputs, graph.trace.outputs, strict=True)
        return {output: self._found[part, is_evaluating, node] for output, node in outputs}


def _batch(graph: Lowered, inputs: Arrays) -> int:
    for name, step in zip(graph.inputs, graph.trace.inputs, strict=True):
        for i, dim in enumerate(step.shapes[0] or ()):
            if isinstance(dim, Batch) and name in inputs:
                return int(inputs[name].shape[i] / dim.factor)
    return 1


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _typed(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, dict):
        return {key: _typed(value, dtype) for key, value in argument.items()}
    if isinstance(argument, list):
        return [_typed(value, dtype) for value in argument]
    return dtype if argument is torch.float32 else argument
