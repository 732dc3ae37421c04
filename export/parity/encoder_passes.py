"""The encoder's stages run one after the other, as a device does, to compare what they give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.wire.manifest import Stage

Arrays = Mapping[str, NDArray[Any]]
Mode = Literal["recompute", "keep"]
KINDS: Mapping[Mode, tuple[str, str]] = {"recompute": ("forward", "backward"), "keep": ("keep", "kept")}

RunByName = Callable[[str, Arrays], Arrays]
"""Runs a graph once: its name and its inputs, to its outputs by name."""


def forward(stages: Sequence[Stage], run: RunByName, x: Arrays, mode: Mode) -> dict[str, NDArray[Any]]:
    """All that the stages put out for x, parameters, state and seed; what a stage saved is under `<k>.saved.<i>`."""
    found: dict[str, NDArray[Any]] = {}
    for k in range(len(stages)):
        results = run(f"encoder.{k}.{KINDS[mode][0]}", {**x, **found})
        found |= {f"{k}.{name}" if name.startswith("saved.") else name: array for name, array in results.items()}
    return found


def backward(
    stages: Sequence[Stage], run: RunByName, x: Arrays, dz: Arrays, found: Arrays, mode: Mode
) -> dict[str, NDArray[Any]]:
    """The gradients of all parameters, by their names on the graphs, for ∂L/∂z and what `forward` found; and of e."""
    arriving = dict(dz)
    gradients: dict[str, NDArray[Any]] = {}
    for k in reversed(range(len(stages))):
        saved = {name.removeprefix(f"{k}."): array for name, array in found.items() if name.startswith(f"{k}.")}
        results = run(f"encoder.{k}.{KINDS[mode][1]}", {**x, **found, **saved, **arriving})
        for name, array in results.items():
            if name.startswith("grad."):
                gradients[name] = array
            else:
                arriving[name] = np.add(arriving[name], array) if name in arriving else array
    return gradients | {name: array for name, array in arriving.items() if name == "de"}
