"""The stem on the engine: the first layers, which read the input, always on the device.

Shapes: B samples; the inputs x (B, …) become the embedding e (B, …), and ∂L/∂e the gradients of the stem's parameters.
The backward pass recomputes the forward pass, which is short.
"""

from collections.abc import Callable

import numpy as np

from edge_runtime.training.encoder import Batch, Inputs, batch_size
from edge_runtime.training.engine import Graph
from edge_runtime.wire.manifest import Array


class Stem:
    """The stem's graphs. `parameters` are parameters and seed by name."""

    def __init__(self, embedding: Array, graph: Callable[[str], Graph]) -> None:
        self._shape = embedding.shape
        self._graph = graph

    def forward(self, x: Inputs, parameters: Inputs) -> Batch:
        """Compute the embedding in training mode."""
        return self._embed("forward", x, parameters)

    def predict(self, x: Inputs, parameters: Inputs) -> Batch:
        """Compute the embedding in evaluation mode."""
        return self._embed("predict", x, parameters)

    def backward(self, x: Inputs, de: Batch, parameters: Inputs, gradients: Inputs) -> None:
        """Write the gradients of the parameters for ∂L/∂e into the arrays of `gradients`."""
        self._graph("stem.backward").run({**x, "de": de, **parameters}, gradients)

    def _embed(self, kind: str, x: Inputs, parameters: Inputs) -> Batch:
        e = np.empty((batch_size(x), *self._shape), np.float32)
        self._graph(f"stem.{kind}").run({**x, **parameters}, {"e": e})
        return e
