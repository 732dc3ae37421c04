"""The encoder on the engine: a chain of stages, each recomputed in the backward pass or kept from the forward pass.

Shapes: B samples. Recomputing holds the values that cross from stage to stage and, in the backward pass, the
activations of one stage at a time. Keeping a stage saves its second forward pass and holds its activations while the
heads run. Where the model has a stem, the encoder starts from the stem's embedding e instead of x, and gives ∂L/∂e.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.engine import Graph, Held
from edge_runtime.wire.manifest import Manifest

Array = NDArray[Any]
Batch = NDArray[np.float32]
Representation = tuple[Batch, ...]
Inputs = Mapping[str, Array]


class Pass:
    """One forward pass in training mode: what it was given, what its stages wrote, and what those to be kept saved."""

    def __init__(self, given: Inputs, representations: int) -> None:
        self.given = given
        self.values: dict[str, Array] = dict(given)
        self.saved: list[Held | None] = []
        self._representations = representations

    @property
    def z(self) -> Representation:
        """The representation."""
        return tuple(self.values[f"z.{i}"] for i in range(self._representations))


class EncoderBackend(Protocol):
    """A seam: the encoder may be computed here, or by somebody else, who is told how a round goes."""

    @property
    def in_flight(self) -> int:
        """How many forward passes may be begun before the first of them goes back: more than one if that saves time."""
        ...

    def begin_round(self, step: int) -> None:
        """A round begins, or goes on, with an optimizer's step."""
        ...

    def mark_checkpoint(self) -> None:
        """A checkpoint has all steps so far."""
        ...

    def finish_round(self) -> None:
        """The round's training or measuring is done."""
        ...

    def set_place(self, *place: int) -> None:
        """What comes next is of the batch of this place: seed, epoch, step and, of a later micro-batch, its number."""
        ...

    def forward(self, given: Inputs, inputs: Inputs, following: Inputs, *, backward: bool = True) -> Pass:
        """The forward pass in training mode."""
        ...

    def backward(
        self, done: Pass, dz: Representation, inputs: Inputs, gradients: Inputs, *, release: bool = False
    ) -> Callable[[], Batch | None]:
        """The gradients for ∂L/∂z; the result gives, or waits for, ∂L/∂e, if there is an e and it is wanted."""
        ...

    def predict(self, given: Inputs, inputs: Inputs) -> Representation:
        """The representation in evaluation mode."""
        ...


class LocalEncoder:
    """The stages of a manifest's encoder.

    `keep` says which of them keep their activations; by default none does. The first `frozen` have no backward pass.
    """

    def __init__(
        self, manifest: Manifest, graph: Callable[[str], Graph], keep: Sequence[bool] = (), frozen: int = 0
    ) -> None:
        self._stages = manifest.stages
        self._keep = tuple(keep) or (False,) * len(manifest.stages)
        self._frozen = frozen
        self._graph = graph
        z = {f"z.{i}": array.shape for i, array in enumerate(manifest.representation)}
        v = {f"v.{i}": array.shape for i, array in enumerate(manifest.values)}
        self._source = manifest.source
        given = manifest.input if manifest.embedding is None else manifest.embedding
        self._shapes = {self._source: given.shape, **z, **v}
        self._representations = len(z)

    @property
    def in_flight(self) -> int:
        """One after another: there is one processor for all."""
        return 1

    def begin_round(self, step: int) -> None:
        """Nothing is remembered here between steps."""

    def mark_checkpoint(self) -> None:
        """Nor is anything that a checkpoint would need."""

    def finish_round(self) -> None:
        """And nobody waits for the end."""

    def set_place(self, *place: int) -> None:
        """What is random comes with the inputs: nothing else depends on the place."""

    def forward(self, given: Inputs, inputs: Inputs, following: Inputs, *, backward: bool = True) -> Pass:
        """The forward pass from x or e, by name, with parameters, state and seed as `inputs`.

        The next state goes to `following`. Without `backward` nothing is kept for a backward pass.
        """
        done = Pass(given, self._representations)
        batch = len(given[self._source])
        for k, stage in enumerate(self._stages):
            written = {name: self._empty(name, batch) for name in stage.writes}
            keep = backward and self._keep[k] and k >= self._frozen
            graph = self._graph(f"encoder.{k}.{'keep' if keep else 'forward'}")
            held = graph.run({**done.values, **inputs}, {**written, **following}, hold=keep)
            done.saved.append(held if keep else None)
            done.values |= written
        return done

    def backward(
        self, done: Pass, dz: Representation, inputs: Inputs, gradients: Inputs, *, release: bool = False
    ) -> Callable[[], Batch | None]:
        """The gradients of the parameters for ∂L/∂z, into the arrays of `gradients`; the result gives ∂L/∂e.

        None where there is no e, or where the first stage is frozen. With `release` each stage's values are given up
        when they have been used: the pass cannot be gone back again.
        """
        batch = len(done.values[self._source])
        arriving: dict[str, Array] = {f"dz.{i}": array for i, array in enumerate(dz)}
        for k in reversed(range(self._frozen, len(self._stages))):
            stage, saved = self._stages[k], done.saved[k]
            leaving = {f"d{name}": self._empty(name, batch) for name in stage.reads if name != "x"}
            graph = self._graph(f"encoder.{k}.{'backward' if saved is None else 'kept'}")
            graph.run({**done.values, **arriving, **inputs, **(saved or {})}, {**leaving, **gradients})
            for name in stage.writes:
                del arriving[f"d{name}"]
                if release:
                    del done.values[name]
            if release:
                done.saved[k] = saved = None
            for name, array in leaving.items():
                arriving[name] = arriving[name] + array if name in arriving else array
        return partial(arriving.get, "de")

    def predict(self, given: Inputs, inputs: Inputs) -> Representation:
        """The representation in evaluation mode."""
        batch = len(given[self._source])
        z = {name: self._empty(name, batch) for name in (f"z.{i}" for i in range(self._representations))}
        self._graph("encoder.predict").run({**given, **inputs}, z)
        return tuple(z.values())

    def _empty(self, name: str, batch: int) -> Batch:
        return np.empty((batch, *self._shapes[name]), np.float32)
