"""The general model as one device trains it in one round: the encoder's graphs on parameters of its own.

What a replica holds, in vectors as long as the encoder's parameters (P): weights, the gradient of a part, the sum of a
step, the optimizer's state twice, now and as the round began (1 for SGD, 2 for AdamW), and weights and state once more
where a step is remembered. The weights that the round began with are one read-only vector for all replicas. A reader,
in a round that measures losses, holds none of it.
"""

from collections.abc import Callable

import numpy as np

from edge_runtime.split_learning.session import Arrays
from edge_runtime.training.encoder import Inputs, LocalEncoder, Pass
from edge_runtime.training.engine import Graph
from edge_runtime.training.gradient import add_proximal, clip
from edge_runtime.training.model import named
from edge_runtime.training.optimizer import optimizer
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import Vector


class SharedEncoder:
    """The encoder of a bundle with a stem, of which nothing is trained."""

    def __init__(self, manifest: Manifest, graph: Callable[[str], Graph], weights: Vector) -> None:
        """`weights` (P,) are laid out by `manifest.general`."""
        self._inputs = named(manifest.general, weights, "param")["encoder"]
        self._encoder = LocalEncoder(manifest, graph)

    def predict(self, arrays: Arrays) -> Arrays:
        """The representation of an embedding in evaluation mode."""
        (e,) = arrays
        return self._encoder.predict({"e": e}, self._inputs)


class EncoderReplica(SharedEncoder):
    """The encoder of a bundle with a stem, trained by one device."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Callable[[str], Graph],
        start: Vector,
        settings: Training,
        state: Vector | None = None,
    ) -> None:
        """`start` (P,) is laid out by `manifest.general`; `state` is the optimizer's of an earlier round, or begins."""
        table = manifest.general
        table.check(start)
        self._start = start
        self.weights = np.array(start)
        super().__init__(manifest, graph, self.weights)
        self._gradient, self._sum = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self._settings, self._optimizer = settings, optimizer(settings)
        self._first = np.zeros(self._optimizer.table(table).size, np.float32) if state is None else state
        self.state = self._first.copy()
        self._outputs = named(table, self._gradient, "grad")["encoder"]
        self._passes: dict[int, tuple[Pass, Inputs]] = {}
        self._kept: tuple[Vector, Vector] | None = None

    @property
    def change(self) -> Vector:
        """What the device has taught: the weights that the round began with, less those of now, (P,)."""
        return self._start - self.weights

    def forward(self, part: int, arrays: Arrays, seed: int) -> Arrays:
        """The representation of an embedding, in training mode."""
        (e,) = arrays
        inputs = {**self._inputs, "seed": np.array(seed, np.int64)}
        done = self._encoder.forward({"e": e}, inputs, {})
        self._passes[part] = done, inputs
        return done.z

    def backward(self, part: int, arrays: Arrays) -> Arrays:
        """∂L/∂e for ∂L/∂z of a part that went forward; its gradient is added to the step's."""
        done, inputs = self._passes.pop(part)
        de = self._encoder.backward(done, arrays, inputs, self._outputs, release=True)()
        assert de is not None
        self._sum += self._gradient
        return (de,)

    def apply(self) -> None:
        """The optimizer's step. The proximal term and clipping are of the encoder's parameters alone."""
        if self._settings.proximal_mu:
            add_proximal(self._sum, self.weights, self._start, self._settings.proximal_mu)
        if self._settings.clip_norm:
            clip(self._sum, self._settings.clip_norm)
        self._optimizer.step(self.weights, self._sum, self.state)
        self._sum[:] = 0

    def keep(self) -> None:
        """Remember weights and the optimizer's state."""
        self._kept = self.weights.copy(), self.state.copy()

    def go_back(self, step: int | None) -> None:
        """To the beginning (0), to what was remembered, or, with None, to the end of the last step."""
        self._passes.clear()
        self._sum[:] = 0
        if step == 0:
            self.weights[:], self.state[:] = self._start, self._first
        elif step is not None:
            assert self._kept is not None
            self.weights[:], self.state[:] = self._kept
