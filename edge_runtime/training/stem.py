"""The stem on the engine: what a model with one computes of its input before the encoder, on the device in any case.

Shapes: B samples; x (B, …) becomes the embedding e (B, …), and ∂L/∂e the gradients of the stem's parameters. The
backward pass recomputes the forward pass, which is short.
"""

from collections.abc import Callable

import numpy as np

from edge_runtime.training.encoder import Batch, Inputs
from edge_runtime.training.engine import Graph
from edge_runtime.wire.manifest import Array


class Stem:
    """The stem's graphs; parameters and seed are given as `inputs`."""

    def __init__(self, embedding: Array, graph: Callable[[str], Graph]) -> None:
        self._shape = embedding.shape
        self._graph = graph

    def forward(self, x: Batch, inputs: Inputs) -> Batch:
        """The embedding in training mode."""
        return self._embed("forward", x, inputs)

    def predict(self, x: Batch, inputs: Inputs) -> Batch:
        """The embedding in evaluation mode."""
        return self._embed("predict", x, inputs)

    def backward(self, x: Batch, de: Batch, inputs: Inputs, gradients: Inputs) -> None:
        """The gradients of the parameters for ∂L/∂e, into the arrays of `gradients`."""
        self._graph("stem.backward").run({"x": x, "de": de, **inputs}, gradients)

    def _embed(self, kind: str, x: Batch, inputs: Inputs) -> Batch:
        e = np.empty((len(x), *self._shape), np.float32)
        self._graph(f"stem.{kind}").run({"x": x, **inputs}, {"e": e})
        return e
