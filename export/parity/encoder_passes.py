"""Passes through the encoder's stages, one graph after the other, as a device runs them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.manifest import Stage
from edge_runtime.wire.tensors import STATE, part_of
from export.signature import Role

Arrays = Mapping[str, NDArray[Any]]
Mode = Literal["recompute", "save"]
"""The activations that the backward pass needs are recomputed or saved."""
KINDS: Mapping[Mode, tuple[str, str]] = {"recompute": ("forward", "backward"), "save": ("keep", "kept")}
"""The kinds of a stage's graphs, forward and backward, by mode."""

RunByName = Callable[[str, Arrays], Arrays]
"""Runs a graph once: its name and its inputs, to its outputs by name."""


def inputs_by_part(tensors: Arrays, seed: Callable[[str], int]) -> dict[str, dict[str, NDArray[Any]]]:
    """Return parameters and state, by their names in the graphs, and the seed of each part, by part.

    `tensors` are by their names in the tensor table.
    """
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, tensor in tensors.items():
        part = part_of(name)
        owner = part.removeprefix(STATE)
        role = Role.PARAMETER if owner == part else Role.STATE
        inputs = found.setdefault(owner, {"seed": np.array(seed(owner), np.int64)})
        inputs[role.tensor_name(name.removeprefix(f"{part}."))] = tensor
    return found


def forward(stages: Sequence[Stage], run: RunByName, x: Arrays, mode: Mode, *, fixed: int) -> dict[str, NDArray[Any]]:
    """Return all outputs of the stages for x, parameters, state and seed.

    What stage k saved is named `<k>.saved.<i>`. The first `fixed` stages have a forward graph alone.
    """
    found: dict[str, NDArray[Any]] = {}
    for k in range(len(stages)):
        results = run(f"encoder.{k}.{'forward' if k < fixed else KINDS[mode][0]}", {**x, **found})
        found |= {f"{k}.{name}" if Role.of(name) is Role.SAVED else name: array for name, array in results.items()}
    return found


def backward(
    stages: Sequence[Stage], run: RunByName, x: Arrays, dz: Arrays, found: Arrays, mode: Mode, *, fixed: int
) -> dict[str, NDArray[Any]]:
    """Return the gradients of all parameters, by their names in the graphs, and of e where there is one.

    They are for ∂L/∂z and the outputs of `forward`, `found`.
    """
    arriving = dict(dz)
    gradients: dict[str, NDArray[Any]] = {}
    for k in reversed(range(fixed, len(stages))):
        saved = {name.removeprefix(f"{k}."): array for name, array in found.items() if name.startswith(f"{k}.")}
        results = run(f"encoder.{k}.{KINDS[mode][1]}", {**x, **found, **saved, **arriving})
        for name, array in results.items():
            if Role.of(name) is Role.PARAMETER_GRADIENT:
                gradients[name] = array
            else:
                arriving[name] = np.add(arriving[name], array) if name in arriving else array
    return gradients | {name: array for name, array in arriving.items() if name == "de"}
