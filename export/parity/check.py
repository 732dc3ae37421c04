"""Do the exported graphs compute what PyTorch computes? Losses, every gradient and all state, on the example batch.

Every graph is run by the engine and held to PyTorch's own autograd, tensor by tensor. In a large model that is not
enough: of millions of activations some are so near to a kink (of ReLU, of L1) that rounding decides on which side they
are, and the gradients of two correct programs differ by a jump. A part in which a tensor is over the tolerance is
therefore held to PyTorch in two steps, neither of which knows jumps:

1. The operators that its graphs were translated from, run by PyTorch, give what the model in PyTorch gives. Both round
   alike; where they do not, both are computed in float64, which is a thousand million times further from any kink.
2. Each graph gives what its operators, run by PyTorch on the same inputs, give, where these decide as the graph did:
   what the graph decides by (export.parity.branch_decisions) is taken from it, and is held to PyTorch's as well.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_runtime.wire.graph_names import input_of
from edge_runtime.wire.manifest import Parity
from edge_runtime.wire.tensors import part_of
from export.compile import Compiled
from export.errors import ModelInvalid, ParityFailed
from export.model import MultiTaskModel, apply, numbered, represent, tensors
from export.model_part import Lowered
from export.module_state import in_training, unchanged
from export.parity import encoder_passes
from export.parity.branch_decisions import deciding_values, with_outputs
from export.parity.replay import SharedReplay, replayed
from export.parity.seeded_dropout import SeededDropout
from export.parity.terms import AbsoluteTerms
from export.prediction import outputs_of
from export.running_statistics import BATCH_NORM, moving_statistics, running_statistics
from export.signature import Role

TOLERANCE = 1e-4
SEED = 5
"""Of dropout: both sides draw the same."""
FLOOR = 1e-3
"""A gradient tensor that is smaller than this part of the largest one in its graph is compared on that scale: what is
left there is rounding, as in a bias before a normalisation."""
GRADIENTS = ("grad", "dz", "dv", "de")
MARGIN = 4
ROUNDING = 1e-6
"""A parameter's gradient may differ from PyTorch's in float64, all deciding alike, by this part of the sum of its
absolute terms (export.parity.terms): sixteen units in the last place, where four were seen. Any tensor may also be
MARGIN times as far from it as PyTorch in float32 is, up to this part of the largest tensor in its graph, and a
gradient up to this part of the one that arrives there: before a normalisation of single numbers all is rounding."""
EXACT_ROUNDING = 1e-14
"""The same of a gradient in float64, as a part of the largest one of all graphs."""

Runner = Callable[[bytes, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs a graph once: its bytes and its inputs, to its outputs by name."""

Inputs = Mapping[str, Tensor]
"""A model's inputs by their names in graphs."""

Arrays = Mapping[str, NDArray[Any]]
Tensors = Mapping[str, Arrays]
"""The outputs of all graphs, by the graph's name and their own."""

Errors = dict[tuple[str, str], float]
"""How far tensors are from PyTorch's, relative, by the graph's name and their own."""


def check_parity(compiled: Compiled, run: Runner) -> Parity:
    """Compare for the whole example batch and for its first sample alone. Raises ParityFailed over TOLERANCE.

    Where batches are normalised it is all but its last sample: of a small batch little but rounding may be left.
    """
    errors: dict[tuple[str, str, int], float] = {}
    for batch in sorted({_fewest(compiled.model), compiled.model.examples}):
        found = differences(compiled, run, first(compiled.model.inputs, batch))
        errors |= {(*key, batch): error for key, error in found.items()}
    (graph, name, _), worst = max(errors.items(), key=lambda item: item[1])
    if worst > TOLERANCE:
        raise ParityFailed(f"{name} of {graph} differs from PyTorch by {worst:.1e} relative, more than {TOLERANCE:.0e}")
    return Parity(max_relative_error=worst, worst=f"{name} of {graph}", compared=len(errors))


def _fewest(model: MultiTaskModel) -> int:
    whole = model.examples
    with in_training(*model.parts().values()):
        modules = [module for part in model.parts().values() for module in part.modules()]
        normalised = any(isinstance(module, BATCH_NORM) and module.training for module in modules)
    return min(whole, max(2, whole - 1)) if normalised else 1


def differences(compiled: Compiled, run: Runner, x: Inputs) -> Errors:
    """How far every tensor of the graphs is from PyTorch's for a batch of inputs and the first example targets."""
    calls: dict[str, tuple[Arrays, Arrays]] = {}

    def call(name: str, arrays: Arrays) -> Arrays:
        found = run(compiled.graphs[name], arrays)
        calls[name] = arrays, found
        return found

    reference = _reference(compiled.model, x, of_z=compiled.trains_shared)
    _check_numbers(reference, len(next(iter(x.values()))))
    errors = _errors(outputs(compiled, call, x), reference)
    over = {part_of(graph) for (graph, _), error in errors.items() if error > TOLERANCE}
    if not over:
        return errors
    errors = {key: error for key, error in errors.items() if part_of(key[0]) not in over}
    errors |= _of_translation(compiled, x, reference, over)
    for name, (inputs, results) in calls.items():
        if part_of(name) in over:
            for key, error in _of_graph(compiled, run, name, inputs, results).items():
                errors[name, key] = max(error, errors.get((name, key), 0.0))
    return errors


def _check_numbers(reference: Tensors, samples: int) -> None:
    """Raise ModelInvalid where PyTorch itself gives what is no number: nothing can be trained with it.

    A prediction may be infinite, as the score of a class that is masked.
    """
    for graph, arrays in reference.items():
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                continue
            odd = np.isnan(array) if Role.of(name) is Role.PREDICTION else ~np.isfinite(array)
            if odd.any():
                have = "gradient" if _kind(name) in GRADIENTS else "value"
                raise ModelInvalid(
                    f"{name} of {graph} is {array[odd][0]} for a batch of {samples} of the example, in PyTorch itself: "
                    f"roots, logarithms and quotients have no {have} at zero, nor powers of negative numbers; keep "
                    "away from there, as by clamp(min=1e-8)"
                )


def _of_translation(compiled: Compiled, x: Inputs, reference: Tensors, parts: set[str]) -> Errors:
    """How far the traced operators of some parts are from the model."""

    def ran(dtype: torch.dtype) -> Tensors:
        return outputs(compiled, SharedReplay(compiled.lowered, dtype), x)

    errors = _errors(ran(torch.float32), reference)
    if any(error > TOLERANCE for (graph, _), error in errors.items() if part_of(graph) in parts):
        exact = _reference(_exact(compiled.model), _doubled(x), of_z=compiled.trains_shared)
        errors = _errors(ran(torch.float64), exact, EXACT_ROUNDING * max(map(_most_gradient, exact.values())))
    return {key: error for key, error in errors.items() if part_of(key[0]) in parts}


def _of_graph(compiled: Compiled, run: Runner, name: str, inputs: Arrays, results: Arrays) -> dict[str, float]:
    """How far a graph is from its operators in PyTorch that decide as it did, and what it decides by from theirs."""
    graph = compiled.lowered[name]
    names = deciding_values(graph)
    told = run(with_outputs(compiled.graphs[name], names), inputs) if names else {}
    decided = {name: told[name] for name in names.values() if name in told}
    given = max(_most(value) for name, value in inputs.items() if name in graph.inputs)
    arriving = _most_gradient(inputs) or 1.0  # dL/dL
    reference, own = replayed(graph, inputs, decided)
    errors = relative_errors(results, reference, given=given)
    deciding = relative_errors(decided, own, given=given)
    off = {key for key, error in (*errors.items(), *deciding.items()) if error > TOLERANCE}
    if off:
        # PyTorch in float32 may be off itself: its bias gradients by up to 5e-4.
        part = _computing(graph, off)
        terms = AbsoluteTerms(part)
        exact, _ = replayed(part, inputs, decided, torch.float64, terms)
        exactly = {key: value for key, value in exact.items() if key in own}
        exact = {key: value for key, value in exact.items() if key in reference}
        closer = relative_errors(results, reference | exact, reference, given, terms.largest(), arriving)
        errors |= {key: error for key, error in closer.items() if key in off}
        closer = relative_errors(decided, own | exactly, own, given)
        deciding |= {key: error for key, error in closer.items() if key in off}
    return errors | {f"{name}, by which it decides,": error for name, error in deciding.items()}


def _computing(graph: Lowered, names: Collection[str]) -> Lowered:
    """Return those of a graph's operators that compute some of its outputs and of the values that it decides by."""
    nodes = dict(zip(graph.outputs, graph.trace.outputs, strict=True))
    nodes |= {name: node for node, name in deciding_values(graph).items()}
    wanted = {name: node for name, node in nodes.items() if name in names}
    trace = graph.trace.part([step.node for step in graph.trace.inputs], list(wanted.values()))
    return replace(graph, outputs=tuple(wanted), trace=trace)


def _errors(ours: Tensors, reference: Tensors, rounding: float = 0.0) -> Errors:
    return {
        (graph, name): error
        for graph, arrays in reference.items()
        for name, error in relative_errors(ours[graph], arrays, rounding=rounding).items()
    }


def relative_errors(
    found: Arrays,
    reference: Arrays,
    rounded: Arrays | None = None,
    given: float = 0.0,
    terms: Mapping[str, float] | None = None,
    arriving: float = 0.0,
    rounding: float = 0.0,
) -> dict[str, float]:
    """Each array's largest difference relative to its largest value, but at least FLOOR of the largest of its kind.

    Kinds are what comes before the first dot of a name. What is no gradient is also compared on at least FLOOR of
    `given`, the largest number that went in: a small difference of large numbers is all rounding. With `rounded`, the
    same as a `reference` in float64 but in float32, the scale is raised to fit what these two differ by, and with
    `terms`, the largest Σ |term| of arrays that are sums, to fit their rounding (ROUNDING). `arriving` is the largest
    gradient that went in, and differences up to `rounding` are within the tolerance.
    """
    errors = {}
    of_kind: dict[str, float] = {}
    for name, expected in reference.items():
        kind = _kind(name)
        of_kind[kind] = max(of_kind.get(kind, 0.0 if kind in GRADIENTS else given), _most(expected))
    for name, expected in reference.items():
        whole = of_kind[_kind(name)]
        scale = max(_most(expected), FLOOR * whole, rounding / TOLERANCE, float(np.finfo(np.float32).tiny))
        if rounded is not None:
            most = max(whole, arriving) if _kind(name) in GRADIENTS else whole
            scale = max(scale, min(MARGIN * _apart(rounded[name], expected), ROUNDING * most) / TOLERANCE)
        if terms is not None:
            scale = max(scale, ROUNDING * terms.get(name, 0.0) / TOLERANCE)
        error = _apart(found[name], expected) / scale
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _most(array: NDArray[Any]) -> float:
    most = float(np.abs(array).max(initial=0))
    return _most(array[np.isfinite(array)]) if np.isinf(most) else most


def _most_gradient(arrays: Arrays) -> float:
    return max((_most(value) for name, value in arrays.items() if _kind(name) in GRADIENTS), default=0.0)


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    one, other = (value.astype(np.int8) if value.dtype == np.bool_ else value for value in (one, other))
    with np.errstate(invalid="ignore"):  # of the same infinity on both sides
        apart = float(np.abs(np.subtract(one, other)).max(initial=0))
    if not np.isnan(apart) or not np.isinf(other).any():
        return apart
    return _apart(*(np.where(one == other, 0, value) for value in (one, other)))


def outputs(compiled: Compiled, call: encoder_passes.RunByName, batch: Inputs) -> Tensors:
    """Run all graphs, each on the outputs of those before it; those of all stages are returned together."""
    model = compiled.model
    inputs = encoder_passes.inputs_by_part(compiled.tensors, lambda _: SEED)
    size = len(next(iter(batch.values())))
    given = {name: value.numpy() for name, value in batch.items()}
    x = {**given, **inputs["encoder"]}
    training, stem = x, {}
    if model.stem is not None:
        stem = {kind: call(f"stem.{kind}", {**given, **inputs["stem"]}) for kind in ("forward", "predict")}
        training, x = ({**stem[kind], **inputs["encoder"]} for kind in ("forward", "predict"))
    names = [f"z.{i}" for i in range(len(represent(model)))]
    found = {"encoder.predict": call("encoder.predict", x)}
    stages, fixed = compiled.stages, compiled.fixed_stages
    passes = {mode: encoder_passes.forward(stages, call, training, mode, fixed=fixed) for mode in encoder_passes.KINDS}
    for mode, (kind, _) in encoder_passes.KINDS.items():
        found[f"encoder.{kind}"] = passes[mode]
    total = {f"d{name}": np.zeros_like(passes["recompute"][name]) for name in names}
    for task in model.tasks:
        part = f"head.{task}"
        held = {"target": model.example_targets[task][:size].numpy(), **inputs[part]}
        for kind in ("step", "loss", "evaluate", "predict"):
            source = "encoder.forward" if kind in ("step", "loss") else "encoder.predict"
            z = {name: found[source][name] for name in names}
            found[f"{part}.{kind}"] = call(f"{part}.{kind}", z | held)
        for name in total.keys() & found[f"{part}.step"].keys():
            total[name] += found[f"{part}.step"][name]
    for mode, (_, kind) in encoder_passes.KINDS.items():
        found[f"encoder.{kind}"] = encoder_passes.backward(
            stages, call, training, total, passes[mode], mode, fixed=fixed
        )
    found |= {f"stem.{kind}": results for kind, results in stem.items()}
    if "stem.backward" in compiled.graphs:
        de = {"de": found["encoder.backward"]["de"], **given, **inputs["stem"]}
        found["stem.backward"] = call("stem.backward", de)
    return found


def _doubled(values: Inputs) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}


def first(inputs: Inputs, count: int) -> dict[str, Tensor]:
    """Return the first samples of inputs."""
    return {name: value[:count] for name, value in inputs.items()}


def _exact(model: MultiTaskModel) -> MultiTaskModel:
    """Return the model in float64."""
    targets = {task: y.double() if y.is_floating_point() else y for task, y in model.example_targets.items()}
    parts = {part: copy.deepcopy(module).double() for part, module in model.parts().items()}
    return replace(
        model,
        encoder=parts["encoder"],
        heads={task: parts[f"head.{task}"] for task in model.tasks},
        stem=parts.get("stem"),
        example_input={input_of(name): value for name, value in _doubled(model.inputs).items()},
        example_targets=targets,
    )


def _reference(model: MultiTaskModel, batch: Inputs, *, of_z: bool) -> dict[str, dict[str, NDArray[Any]]]:
    """Return PyTorch's results; `of_z` asks for ∂L/∂z too."""
    with unchanged(*model.parts().values()):
        for module in model.parts().values():
            module.eval()
        found = _evaluated(model, batch)
    with in_training(*model.parts().values()):
        for module in model.parts().values():
            module.zero_grad(set_to_none=True)
        size, source = len(next(iter(batch.values()))), dict(batch)
        if model.stem is not None:
            with SeededDropout(SEED):
                e = apply(model.stem, batch)
            source = {"e": e.detach().requires_grad_()}
        with SeededDropout(SEED):
            z = tensors(apply(model.encoder, source))
        forward = _arrays(numbered("z", z)) | _next_state(model.encoder)
        total = [torch.zeros_like(value) for value in z]
        for task in model.tasks:
            leaves = tuple(value.detach().requires_grad_() for value in z)
            with SeededDropout(SEED):
                prediction = model.heads[task](model.packed(leaves))
                loss = model.losses[task](prediction, model.example_targets[task][:size])
            torch.autograd.backward(loss)
            dz = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            total = [summed + one for summed, one in zip(total, dz, strict=True)]
            head = model.heads[task]
            found[f"head.{task}.loss"] = _arrays({"loss": loss})
            found[f"head.{task}.step"] = (
                _arrays({"loss": loss, **(numbered("dz", dz) if of_z else {})}) | _gradients(head) | _next_state(head)
            )
        live = [value for value in z if value.requires_grad]
        if live:
            torch.autograd.backward(live, [dz for value, dz in zip(z, total, strict=True) if value.requires_grad])
        gradients = _gradients(model.encoder)
        if model.stem is not None:
            gradients |= _arrays({"de": cast("Tensor", source["e"].grad)})
            found["stem.forward"] = _arrays({"e": e})
            if e.requires_grad:
                torch.autograd.backward(e, source["e"].grad)
                found["stem.backward"] = _gradients(model.stem)
        for kinds in encoder_passes.KINDS.values():
            found |= zip((f"encoder.{kind}" for kind in kinds), (forward, gradients), strict=True)
    return found


def _evaluated(model: MultiTaskModel, batch: Inputs) -> dict[str, dict[str, NDArray[Any]]]:
    size, source = len(next(iter(batch.values()))), dict(batch)
    found = {}
    with torch.no_grad():
        if model.stem is not None:
            with SeededDropout(SEED):
                source = {"e": apply(model.stem, batch)}
            found["stem.predict"] = _arrays(source)
        with SeededDropout(SEED):
            z = tensors(apply(model.encoder, source))
        found["encoder.predict"] = _arrays(numbered("z", z))
        for task in model.tasks:
            with SeededDropout(SEED):
                prediction = model.heads[task](model.packed(z))
                own = {name: value.clone() for name, value in outputs_of(prediction).items()}
                found[f"head.{task}.predict"] = _arrays(own)  # a loss may work in place
                loss = model.losses[task](prediction, model.example_targets[task][:size])
            found[f"head.{task}.evaluate"] = _arrays({"loss": loss})
    return found


def _gradients(module: nn.Module) -> dict[str, NDArray[Any]]:
    return _arrays({f"grad.{name}": p.grad for name, p in module.named_parameters() if p.grad is not None})


def _next_state(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a copy of the state that training moves: it goes on in the same buffers."""
    moving, held = moving_statistics(module), running_statistics(module)
    return _arrays({f"next.{name}": value.clone() for name, value in held.items() if name in moving})


def _arrays(values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: value.detach().numpy() for name, value in values.items()}
