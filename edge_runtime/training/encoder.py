"""The encoder on the engine: a chain of stages, with saved activations or activation checkpointing for each.

Shapes: B samples. Activation checkpointing holds the values between stages and, in the backward pass, the activations
of one stage at a time, which it recomputes. Saving a stage's activations spares its second forward pass and holds them
while the heads run. Where the model has a stem, the encoder starts from its embedding e instead of x, and gives ∂L/∂e.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.engine import Graph, Held
from edge_runtime.wire.graph_names import is_input, value_of
from edge_runtime.wire.manifest import Manifest

Array = NDArray[Any]
Batch = NDArray[np.float32]
Representation = tuple[Batch, ...]
Inputs = Mapping[str, Array]
"""Arrays by their names in the graphs: of a model's inputs, or of a part's parameters."""


def batch_size(values: Inputs) -> int:
    """Return the number of samples B of a model's inputs, or of other values (B, …)."""
    return len(next(iter(values.values())))


class Pass:
    """One forward pass in training mode: its input, the values that its stages wrote, and saved activations."""

    def __init__(self, source: Inputs, representations: int) -> None:
        self.source = source
        self.values: dict[str, Array] = dict(source)
        self.saved: list[Held | None] = []
        self._representations = representations

    @property
    def inputs(self) -> Inputs:
        """The model's inputs."""
        return {name: array for name, array in self.source.items() if is_input(name)}

    @property
    def z(self) -> Representation:
        """The representation."""
        return tuple(self.values[f"z.{i}"] for i in range(self._representations))


class EncoderBackend(Protocol):
    """A seam: the encoder is computed here or by an encoder server, which follows the course of the round."""

    @property
    def in_flight(self) -> int:
        """The number of forward passes that may begin before the first one's backward pass; more than 1 saves time."""
        ...

    def begin_round(self, step: int) -> None:
        """Begin a round, or go on with it, at an optimizer's step."""
        ...

    def mark_checkpoint(self) -> None:
        """Take notice that a checkpoint has all steps so far."""
        ...

    def finish_round(self) -> None:
        """End the round."""
        ...

    def set_place(self, *place: int) -> None:
        """Name the batch that comes next: seed, epoch, step and, of a later micro-batch, its number."""
        ...

    def forward(self, source: Inputs, parameters: Inputs, next_state: Inputs, *, backward: bool = True) -> Pass:
        """Run the forward pass in training mode."""
        ...

    def backward(
        self, done: Pass, dz: Representation, parameters: Inputs, gradients: Inputs, *, release: bool = False
    ) -> Callable[[], Batch | None]:
        """Run the backward pass for ∂L/∂z; the result returns ∂L/∂e, if there is one, and may wait for it."""
        ...

    def predict(self, source: Inputs, parameters: Inputs) -> Representation:
        """Compute the representation in evaluation mode."""
        ...


class LocalEncoder:
    """The stages of a manifest's encoder, on this device.

    `save_activations` is true for the stages that save them; by default none does. The first `frozen` stages, and those
    in which and before which nothing is trained, have no backward pass.
    """

    def __init__(
        self, manifest: Manifest, graph: Callable[[str], Graph], save_activations: Sequence[bool] = (), frozen: int = 0
    ) -> None:
        self._stages = manifest.stages
        self._save_activations = tuple(save_activations) or (False,) * len(manifest.stages)
        self._frozen = max(frozen, manifest.fixed_stages)
        fixed = {name for stage in manifest.stages[: manifest.fixed_stages] for name in stage.writes}
        self._without_gradient = {*map(value_of, manifest.inputs), *fixed}
        self._graph = graph
        z = {f"z.{i}": array.shape for i, array in enumerate(manifest.representation)}
        v = {f"v.{i}": array.shape for i, array in enumerate(manifest.values)}
        self._shapes = {**{name: array.shape for name, array in manifest.sources.items()}, **z, **v}
        self._representations = len(z)

    @property
    def in_flight(self) -> int:
        """1: passes run one after another on the same processor."""
        return 1

    def begin_round(self, step: int) -> None:
        """Do nothing: there is no state between steps."""

    def mark_checkpoint(self) -> None:
        """Do nothing: a checkpoint of the model has everything."""

    def finish_round(self) -> None:
        """Do nothing: nobody waits for the end."""

    def set_place(self, *place: int) -> None:
        """Do nothing: the seed comes with the parameters."""

    def forward(self, source: Inputs, parameters: Inputs, next_state: Inputs, *, backward: bool = True) -> Pass:
        """Run the forward pass from the inputs or e, by name, with parameters, state and seed as `parameters`.

        The next state goes to `next_state`. Without `backward` nothing is saved for a backward pass.
        """
        done = Pass(source, self._representations)
        batch = batch_size(source)
        for k, stage in enumerate(self._stages):
            written = {name: self._empty(name, batch) for name in stage.writes}
            saves = backward and self._save_activations[k] and k >= self._frozen
            graph = self._graph(f"encoder.{k}.{'keep' if saves else 'forward'}")
            held = graph.run({**done.values, **parameters}, {**written, **next_state}, hold=saves)
            done.saved.append(held if saves else None)
            done.values |= written
        return done

    def backward(
        self, done: Pass, dz: Representation, parameters: Inputs, gradients: Inputs, *, release: bool = False
    ) -> Callable[[], Batch | None]:
        """Write the gradients of the parameters for ∂L/∂z into the arrays of `gradients`; the result returns ∂L/∂e.

        It returns None without e, or if the first stage is frozen. With `release` each stage's values are freed after
        their use: the pass has no second backward pass.
        """
        batch = batch_size(done.source)
        arriving: dict[str, Array] = {f"dz.{i}": array for i, array in enumerate(dz)}
        for k in reversed(range(self._frozen, len(self._stages))):
            stage, saved = self._stages[k], done.saved[k]
            leaving = {
                f"d{name}": self._empty(name, batch) for name in stage.reads if name not in self._without_gradient
            }
            graph = self._graph(f"encoder.{k}.{'backward' if saved is None else 'kept'}")
            graph.run({**done.values, **arriving, **parameters, **(saved or {})}, {**leaving, **gradients})
            for name in stage.writes:
                del arriving[f"d{name}"]
                if release:
                    del done.values[name]
            if release:
                done.saved[k] = saved = None
            for name, array in leaving.items():
                arriving[name] = arriving[name] + array if name in arriving else array
        return partial(arriving.get, "de")

    def predict(self, source: Inputs, parameters: Inputs) -> Representation:
        """Compute the representation in evaluation mode."""
        batch = batch_size(source)
        z = {name: self._empty(name, batch) for name in (f"z.{i}" for i in range(self._representations))}
        self._graph("encoder.predict").run({**source, **parameters}, z)
        return tuple(z.values())

    def _empty(self, name: str, batch: int) -> Batch:
        return np.empty((batch, *self._shapes[name]), np.float32)
