"""Do the exported graphs compute what PyTorch computes? Losses, every gradient and all state, on the example batch."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_runtime.wire.manifest import Parity
from edge_runtime.wire.tensors import STATE, part_of
from export import chain
from export.compile import Compiled
from export.errors import ParityFailed
from export.model import MultiTaskModel, numbered, represent, tensors
from export.running import BATCH_NORM, running_statistics, unchanged
from export.seeded import Seeded

TOLERANCE = 1e-4
DRAWS = 4
SEED = 5
"""Of dropout: both sides draw the same."""
FLOOR = 1e-3
"""A gradient tensor that is smaller than this part of the largest one in its graph is compared on that scale: what is
left there is rounding, as in a bias before a normalisation."""
NUDGES = 3
NUDGE = 2.0**-22
"""How far PyTorch is from itself where it rounds otherwise is seen in float64, and with all parameters and inputs moved
by this part of themselves, a few times: two units in the last place. Of many activations some are then on the other
side of a kink, and the gradients of a deep network of ReLUs jump by up to a hundredth."""
MARGIN = 4
ROUGH = 0.05
NOTHING = 1e-5
"""Where PyTorch is that far from itself, MARGIN times as much is allowed, but never more than the part ROUGH of the
tensor, or the part NOTHING of the largest one in its graph: a tensor of no more than that is rounding alone."""

Runner = Callable[[bytes, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs a graph once: its bytes and its inputs, to its outputs by name."""

Tensors = Mapping[str, Mapping[str, NDArray[Any]]]
"""The outputs of all graphs, by the graph's name and their own."""


def check_parity(compiled: Compiled, run: Runner) -> Parity:
    """Compare for the whole example batch and for its first sample alone. Raises ParityFailed over TOLERANCE.

    Where batches are normalised it is all but its last sample: of a small batch little but rounding may be left.

    Where rounding falls on the other side of a kink (of L1, or of ReLU) the gradients differ by a jump that says
    nothing of the graphs. So where a tensor is over the tolerance, it may be as far away as PyTorch is from itself when
    it rounds otherwise (NUDGES); and all are compared again at other points near by, up to DRAWS of them, and each
    tensor's smallest difference counts: a wrong formula is wrong at all of them.
    """
    errors: dict[tuple[str, str, int], float] = {}
    for batch in sorted({_fewest(compiled.model), compiled.model.example_input.shape[0]}):
        smallest: dict[tuple[str, str], float] = {}
        for draw in range(DRAWS):
            found = _compared(compiled, run, _input(compiled, batch, draw))
            smallest = {key: min(error, smallest.get(key, error)) for key, error in found.items()}
            if max(smallest.values()) <= TOLERANCE:
                break
        errors |= {(*key, batch): error for key, error in smallest.items()}
    (graph, name, _), worst = max(errors.items(), key=lambda item: item[1])
    if worst > TOLERANCE:
        raise ParityFailed(f"{name} of {graph} differs from PyTorch by {worst:.1e} relative, more than {TOLERANCE:.0e}")
    return Parity(max_relative_error=worst, worst=f"{name} of {graph}", compared=len(errors))


def _fewest(model: MultiTaskModel) -> int:
    whole = len(model.example_input)
    normalised = any(isinstance(m, BATCH_NORM) for part in model.parts().values() for m in part.modules())
    return min(whole, max(2, whole - 1)) if normalised else 1


def _input(compiled: Compiled, batch: int, draw: int) -> Tensor:
    x = compiled.model.example_input[:batch]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(draw))
    return x + 0.01 * noise if draw else x


def _compared(compiled: Compiled, run: Runner, x: Tensor) -> dict[tuple[str, str], float]:
    ours, reference = _ours(compiled, run, x), _reference(compiled.model, x)
    errors = _errors(ours, reference, [])
    others: list[Tensors] = []
    again = _rounded_otherwise(compiled.model, x)
    while max(errors.values()) > TOLERANCE and (other := next(again, None)) is not None:
        others.append(other)
        errors = _errors(ours, reference, others)
    return errors


def _errors(ours: Tensors, reference: Tensors, others: Sequence[Tensors]) -> dict[tuple[str, str], float]:
    return {
        (graph, name): error
        for graph, arrays in reference.items()
        for name, error in relative_errors(ours[graph], arrays, [other[graph] for other in others]).items()
    }


def relative_errors(
    found: Mapping[str, NDArray[Any]],
    reference: Mapping[str, NDArray[Any]],
    others: Sequence[Mapping[str, NDArray[Any]]] = (),
) -> dict[str, float]:
    """Each array's largest difference relative to its largest value, but at least FLOOR of the largest of all.

    With `others`, the reference after rounding otherwise, the scale is raised to fit their differences (see NUDGES).
    """
    errors = {}
    largest = max(float(np.abs(array).max()) for array in reference.values())
    for name, expected in reference.items():
        own = float(np.abs(expected).max())
        scale = max(own, FLOOR * largest, float(np.finfo(np.float32).tiny))
        noise = max((float(np.abs(expected - other[name]).max()) for other in others), default=0.0)
        scale = max(scale, min(MARGIN * noise, max(ROUGH * own, NOTHING * largest)) / TOLERANCE)
        error = float(np.abs(found[name] - expected).max()) / scale
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def _ours(compiled: Compiled, run: Runner, batch: Tensor) -> dict[str, Mapping[str, NDArray[Any]]]:
    model = compiled.model
    inputs = _inputs(compiled)
    size = len(batch)

    def call(name: str, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return run(compiled.graphs[name], arrays)

    x = {"x": batch.numpy(), **inputs["encoder"]}
    training, stem = x, {}
    if model.stem is not None:
        stem = {kind: call(f"stem.{kind}", {"x": x["x"], **inputs["stem"]}) for kind in ("forward", "predict")}
        training, x = ({**stem[kind], **inputs["encoder"]} for kind in ("forward", "predict"))
    names = [f"z.{i}" for i in range(len(represent(model)))]
    found = {"encoder.predict": call("encoder.predict", x)}
    passes = {mode: chain.forward(compiled.stages, call, training, mode) for mode in chain.KINDS}
    for mode, (kind, _) in chain.KINDS.items():
        found[f"encoder.{kind}"] = passes[mode]
    total = {f"d{name}": np.zeros_like(passes["recompute"][name]) for name in names}
    for task in model.tasks:
        part = f"head.{task}"
        held = {"target": model.example_targets[task][:size].numpy(), **inputs[part]}
        for kind in ("step", "loss", "evaluate", "predict"):
            source = "encoder.forward" if kind in ("step", "loss") else "encoder.predict"
            z = {name: found[source][name] for name in names}
            found[f"{part}.{kind}"] = call(f"{part}.{kind}", z | held)
        for name in total:
            total[name] += found[f"{part}.step"][name]
    for mode, (_, kind) in chain.KINDS.items():
        found[f"encoder.{kind}"] = chain.backward(compiled.stages, call, training, total, passes[mode], mode)
    if model.stem is not None:
        de = {"de": found["encoder.backward"]["de"], "x": batch.numpy(), **inputs["stem"]}
        found |= {f"stem.{kind}": results for kind, results in stem.items()}
        found["stem.backward"] = call("stem.backward", de)
    return found


def _inputs(compiled: Compiled) -> dict[str, dict[str, NDArray[Any]]]:
    """Parameters, state and seed by part, under the names that the graphs give them."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, view in compiled.table.views(compiled.weights).items():
        part = part_of(name)
        owner = part.removeprefix(STATE)
        kind = "param" if owner == part else "state"
        found.setdefault(owner, {"seed": np.array(SEED, np.int64)})[f"{kind}.{name.removeprefix(f'{part}.')}"] = view
    return found


def _rounded_otherwise(model: MultiTaskModel, batch: Tensor) -> Iterator[Tensors]:
    """The reference in float64, unless the user's code knows float32 alone, and nudged."""
    with contextlib.suppress(RuntimeError, TypeError):
        yield _reference(_copied(model, torch.float64), batch.double())
    for i in range(NUDGES):
        generator = torch.Generator().manual_seed(i)
        other = _copied(model, torch.float32)
        with torch.no_grad():
            for module in other.parts().values():
                for parameter in module.parameters():
                    parameter.copy_(_nudged(parameter, generator))
        yield _reference(other, _nudged(batch, generator))


def _nudged(value: Tensor, generator: torch.Generator) -> Tensor:
    return value * (1 + NUDGE * torch.randn(value.shape, generator=generator))


def _copied(model: MultiTaskModel, dtype: torch.dtype) -> MultiTaskModel:
    targets = {task: y.to(dtype) if y.is_floating_point() else y for task, y in model.example_targets.items()}
    parts = {part: copy.deepcopy(module).to(dtype) for part, module in model.parts().items()}
    return replace(
        model,
        encoder=parts["encoder"],
        heads={task: parts[f"head.{task}"] for task in model.tasks},
        stem=parts.get("stem"),
        example_input=model.example_input.to(dtype),
        example_targets=targets,
    )


def _reference(model: MultiTaskModel, batch: Tensor) -> dict[str, dict[str, NDArray[Any]]]:
    with unchanged(*model.parts().values()):
        for module in model.parts().values():
            module.eval()
        found = _evaluated(model, batch)
        for module in model.parts().values():
            module.train()
            module.zero_grad(set_to_none=True)
        source = batch
        if model.stem is not None:
            with Seeded(SEED):
                e = model.stem(batch)
            source = e.detach().requires_grad_()
        with Seeded(SEED):
            z = tensors(model.encoder(source))
        forward = _arrays(numbered("z", z)) | _next_state(model.encoder)
        total = [torch.zeros_like(value) for value in z]
        for task in model.tasks:
            leaves = tuple(value.detach().requires_grad_() for value in z)
            with Seeded(SEED):
                prediction = model.heads[task](model.packed(leaves))
                loss = model.losses[task](prediction, model.example_targets[task][: len(batch)])
            torch.autograd.backward(loss)
            dz = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            total = [summed + one for summed, one in zip(total, dz, strict=True)]
            head = model.heads[task]
            found[f"head.{task}.loss"] = _arrays({"loss": loss})
            found[f"head.{task}.step"] = (
                _arrays({"loss": loss, **numbered("dz", dz)}) | _gradients(head) | _next_state(head)
            )
        live = [value for value in z if value.requires_grad]
        torch.autograd.backward(live, [dz for value, dz in zip(z, total, strict=True) if value.requires_grad])
        gradients = _gradients(model.encoder)
        if model.stem is not None:
            torch.autograd.backward(e, source.grad)
            gradients |= _arrays({"de": cast("Tensor", source.grad)})
            found |= {"stem.forward": _arrays({"e": e}), "stem.backward": _gradients(model.stem)}
        for kinds in chain.KINDS.values():
            found |= zip((f"encoder.{kind}" for kind in kinds), (forward, gradients), strict=True)
    return found


def _evaluated(model: MultiTaskModel, batch: Tensor) -> dict[str, dict[str, NDArray[Any]]]:
    with torch.no_grad():
        z = tensors(model.encode(batch))
        found = {"encoder.predict": _arrays(numbered("z", z))}
        if model.stem is not None:
            found["stem.predict"] = _arrays({"e": model.stem(batch)})
        for task in model.tasks:
            prediction = model.heads[task](model.packed(z))
            loss = model.losses[task](prediction, model.example_targets[task][: len(batch)])
            found[f"head.{task}.predict"] = _arrays({"prediction": prediction})
            found[f"head.{task}.evaluate"] = _arrays({"loss": loss})
    return found


def _gradients(module: nn.Module) -> dict[str, NDArray[Any]]:
    return _arrays({f"grad.{name}": p.grad for name, p in module.named_parameters() if p.grad is not None})


def _next_state(module: nn.Module) -> dict[str, NDArray[Any]]:
    """A copy: training goes on in the same buffers."""
    state = {f"next.{name}": value.clone() for name, value in running_statistics(module).items()}
    return _arrays(state)


def _arrays(values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: value.detach().numpy() for name, value in values.items()}
