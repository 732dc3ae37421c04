"""Do the exported graphs compute what PyTorch computes? Losses and every gradient, on the example batch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_runtime.wire.manifest import Parity
from edge_runtime.wire.tensors import part_of
from export.compile import Compiled, named_parameters
from export.errors import ParityFailed

TOLERANCE = 1e-4
DRAWS = 4
FLOOR = 1e-3
"""A gradient tensor that is smaller than this part of the largest one in its graph is compared on that scale: what is
left there is rounding, as in a bias before a normalisation."""

Runner = Callable[[bytes, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs a graph once: its bytes and its inputs, to its outputs by name."""


def check_parity(compiled: Compiled, run: Runner) -> Parity:
    """Compare for the whole example batch and for its first sample alone. Raises ParityFailed over TOLERANCE.

    Where rounding falls on the other side of a kink (of L1, or of ReLU) the gradients differ by a jump that says
    nothing of the graphs. So where a tensor is over the tolerance, all are compared again at other points near by, up
    to DRAWS of them, and each tensor's smallest difference counts: a wrong formula is wrong at all of them.
    """
    errors: dict[tuple[str, str, int], float] = {}
    for draw in range(DRAWS):
        for batch in sorted({1, compiled.model.example_input.shape[0]}):
            x = _input(compiled, batch, draw)
            for (graph, name), error in _errors(_ours(compiled, run, x), _reference(compiled, x)).items():
                key = (graph, name, batch)
                errors[key] = error if draw == 0 else min(errors[key], error)
        if max(errors.values()) <= TOLERANCE:
            break
    (graph, name, _), worst = max(errors.items(), key=lambda item: item[1])
    if worst > TOLERANCE:
        raise ParityFailed(f"{name} of {graph} differs from PyTorch by {worst:.1e} relative, more than {TOLERANCE:.0e}")
    return Parity(max_relative_error=worst, worst=f"{name} of {graph}", compared=len(errors))


def _input(compiled: Compiled, batch: int, draw: int) -> Tensor:
    x = compiled.model.example_input[:batch]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(draw))
    return x + 0.01 * noise if draw else x


def _errors(
    ours: Mapping[str, Mapping[str, NDArray[Any]]], reference: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[tuple[str, str], float]:
    return {
        (graph, name): error
        for graph, tensors in reference.items()
        for name, error in relative_errors(ours[graph], tensors).items()
    }


def relative_errors(found: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Each tensor's largest difference relative to its largest value, but at least FLOOR of the largest of all."""
    errors = {}
    largest = max(float(np.abs(tensor).max()) for tensor in reference.values())
    for name, expected in reference.items():
        scale = max(float(np.abs(expected).max()), FLOOR * largest, float(np.finfo(np.float32).tiny))
        error = float(np.abs(found[name] - expected).max()) / scale
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def _ours(compiled: Compiled, run: Runner, batch: Tensor) -> dict[str, Mapping[str, NDArray[Any]]]:
    model, graphs = compiled.model, compiled.graphs
    views = compiled.table.views(compiled.weights)

    def parameters(part: str) -> dict[str, NDArray[Any]]:
        return {f"param.{n.removeprefix(f'{part}.')}": view for n, view in views.items() if part_of(n) == part}

    encoder = parameters("encoder")
    x, size = batch.numpy(), len(batch)
    found = {"encoder.forward": run(graphs["encoder.forward"], {"x": x, **encoder})}
    z = found["encoder.forward"]["z"]
    total = np.zeros_like(z)
    for task in model.tasks:
        inputs = {"z": z, "target": model.example_targets[task][:size].numpy(), **parameters(f"head.{task}")}
        for kind in ("step", "loss", "predict"):
            found[f"head.{task}.{kind}"] = run(graphs[f"head.{task}.{kind}"], inputs)
        total += found[f"head.{task}.step"]["dz"]
    found["encoder.backward"] = run(graphs["encoder.backward"], {"x": x, "dz": total, **encoder})
    return found


def _reference(compiled: Compiled, batch: Tensor) -> dict[str, dict[str, NDArray[Any]]]:
    model = compiled.model
    parameters = named_parameters(model)
    for parameter in parameters.values():
        parameter.grad = None
    z = model.encoder(batch)
    z.retain_grad()
    found: dict[str, dict[str, NDArray[Any]]] = {"encoder.forward": {"z": _numpy(z)}}
    for task in model.tasks:
        leaf = z.detach().requires_grad_()
        prediction = model.heads[task](leaf)
        loss = model.losses[task](prediction, model.example_targets[task][: len(batch)])
        torch.autograd.backward(loss)
        assert leaf.grad is not None
        torch.autograd.backward(z, leaf.grad, retain_graph=True)
        gradients = _gradients(parameters, f"head.{task}")
        found[f"head.{task}.step"] = {"loss": _numpy(loss), "dz": _numpy(leaf.grad), **gradients}
        found[f"head.{task}.loss"] = {"loss": _numpy(loss)}
        found[f"head.{task}.predict"] = {"prediction": _numpy(prediction)}
    found["encoder.backward"] = _gradients(parameters, "encoder")
    return found


def _gradients(parameters: Mapping[str, Tensor], part: str) -> dict[str, NDArray[Any]]:
    return {f"grad.{n.removeprefix(f'{part}.')}": _numpy(p.grad) for n, p in parameters.items() if part_of(n) == part}


def _numpy(tensor: Tensor | None) -> NDArray[Any]:
    assert tensor is not None
    return tensor.detach().numpy()
