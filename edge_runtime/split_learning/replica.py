"""The shared encoder as one device trains it in one round: the encoder's graphs on parameters of its own.

A replica holds vectors as long as the encoder's parameters (P): the weights, the gradient of a part, the gradient's sum
over a step, and the optimizer's state (1 vector for SGD, 2 for AdamW) twice, now and at the round's beginning. After a
device's checkpoint it holds weights and state once more. All replicas share one read-only vector of initial weights. A
round that evaluates needs none of this, only a SharedEncoder.
"""

import numpy as np

from edge_runtime.split_learning.session import Arrays
from edge_runtime.training.encoder import Inputs, LocalEncoder, Pass
from edge_runtime.training.gradient import add_proximal, clip
from edge_runtime.training.graph_arrays import named
from edge_runtime.training.graph_cache import Graphs
from edge_runtime.training.optimizer import make_optimizer
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Training
from edge_runtime.wire.tensors import Vector


class SharedEncoder:
    """The encoder of a bundle with a stem, for evaluation alone."""

    def __init__(self, manifest: Manifest, graph: Graphs, weights: Vector) -> None:
        """`weights` (P,) are laid out by `manifest.encoder_table`."""
        fixed = graph.fixed.get("encoder", {}) if manifest.fixed else {}
        self._parameters = {**named(manifest.encoder_table, weights, "param")["encoder"], **fixed}
        self._encoder = LocalEncoder(manifest, graph)

    def predict(self, arrays: Arrays) -> Arrays:
        """Compute the representation of an embedding in evaluation mode."""
        (e,) = arrays
        return self._encoder.predict({"e": e}, self._parameters)


class EncoderReplica(SharedEncoder):
    """The encoder of a bundle with a stem, as one device trains it."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Graphs,
        initial_weights: Vector,
        settings: Training,
        initial_state: Vector | None = None,
    ) -> None:
        """`initial_weights` (P,) are laid out by `manifest.encoder_table`.

        `initial_state` is the optimizer's state of the previous round; without it the state begins at zero.
        """
        table = manifest.encoder_table
        table.check(initial_weights)
        self._initial_weights = initial_weights
        self.weights = np.array(initial_weights)
        super().__init__(manifest, graph, self.weights)
        self._gradient, self._sum = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self._settings, self._optimizer = settings, make_optimizer(settings)
        if initial_state is None:
            initial_state = np.zeros(self._optimizer.table(table).size, np.float32)
        self._initial_state = initial_state
        self.state = initial_state.copy()
        self._outputs = named(table, self._gradient, "grad")["encoder"]
        self._passes: dict[int, tuple[Pass, Inputs]] = {}
        self._saved: tuple[Vector, Vector] | None = None

    @property
    def delta(self) -> Vector:
        """The change that the device has trained: the initial weights less the current ones, (P,)."""
        return self._initial_weights - self.weights

    def forward(self, part: int, arrays: Arrays, seed: int) -> Arrays:
        """Compute the representation of an embedding in training mode."""
        (e,) = arrays
        parameters = {**self._parameters, "seed": np.array(seed, np.int64)}
        done = self._encoder.forward({"e": e}, parameters, {})
        self._passes[part] = done, parameters
        return done.z

    def backward(self, part: int, arrays: Arrays) -> Arrays:
        """Compute ∂L/∂e from ∂L/∂z of a part after its forward pass, and add its gradient to the step's."""
        done, parameters = self._passes.pop(part)
        de = self._encoder.backward(done, arrays, parameters, self._outputs, release=True)()
        assert de is not None
        self._sum += self._gradient
        return (de,)

    def apply_step(self) -> None:
        """Take the optimizer's step. The proximal term and clipping see the encoder's parameters alone."""
        if self._settings.proximal_mu:
            add_proximal(self._sum, self.weights, self._initial_weights, self._settings.proximal_mu)
        if self._settings.clip_norm:
            clip(self._sum, self._settings.clip_norm)
        self._optimizer.step(self.weights, self._sum, self.state)
        self._sum[:] = 0

    def save(self) -> None:
        """Copy weights and the optimizer's state, for `restore`."""
        self._saved = self.weights.copy(), self.state.copy()

    def restore(self, step: int | None) -> None:
        """Go back to the round's beginning (0), to the saved step, or, with None, to the end of the last step."""
        self._passes.clear()
        self._sum[:] = 0
        if step == 0:
            self.weights[:], self.state[:] = self._initial_weights, self._initial_state
        elif step is not None:
            assert self._saved is not None
            self.weights[:], self.state[:] = self._saved
