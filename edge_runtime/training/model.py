"""A multi-task model on the engine: its graphs, bound to flat vectors of parameters and gradients.

Shapes: B samples, T tasks. The encoder maps x (B, …) to z (B, …); each head's step maps z and a target to a loss, ∂L/∂z
and the gradients of its own parameters. The graphs write into views of `gradient`; nothing is copied.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.engine import Engine, Graph
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.tensors import Vector

Array = NDArray[Any]
Batch = NDArray[np.float32]
Targets = Mapping[str, Array]


class Model:
    """The graphs of a manifest and one vector of parameters, changed in place as training goes on."""

    def __init__(self, manifest: Manifest, graph: Callable[[str], Graph], weights: Vector) -> None:
        """`graph` gives a loaded graph by its name when it is first needed; `weights` (D,) is copied."""
        self.manifest = manifest
        self.tasks = manifest.task_names
        self.table = manifest.table
        self.table.check(weights)
        self.weights = np.array(weights)
        self.gradient = np.zeros_like(self.weights)
        self._parameters = self.table.views(self.weights)
        self._gradients = {f"grad.{name}": view for name, view in self.table.views(self.gradient).items()}
        self._graph = graph

    @property
    def encoder(self) -> slice:
        """Where the encoder's parameters are in the vectors."""
        return self.table.parts["encoder"]

    def represent(self, x: Batch, *, encoder: Vector | None = None) -> Batch:
        """The representation z (B, …); of other encoder parameters if they are given."""
        z = np.empty((len(x), *self.manifest.representation.shape), np.float32)
        self._graph("encoder.forward").run({"x": x, **self._encoder_views(encoder)}, {"z": z})
        return z

    def step(self, task: str, z: Batch, target: Array, dz: Batch) -> float:
        """One head's loss; ∂L/∂z goes to `dz`, the head's gradients to `gradient`."""
        loss = np.empty((), np.float32)
        outputs = {"loss": loss, "dz": dz, **self._gradients}
        self._graph(f"head.{task}.step").run({"z": z, "target": target, **self._parameters}, outputs)
        return float(loss)

    def loss(self, task: str, z: Batch, target: Array) -> float:
        """One head's loss alone."""
        loss = np.empty((), np.float32)
        self._graph(f"head.{task}.loss").run({"z": z, "target": target, **self._parameters}, {"loss": loss})
        return float(loss)

    def predict(self, task: str, z: Batch) -> Batch:
        """One head's prediction (B, …)."""
        prediction = np.empty((len(z), *self.manifest.task(task).prediction.shape), np.float32)
        self._graph(f"head.{task}.predict").run({"z": z, **self._parameters}, {"prediction": prediction})
        return prediction

    def backward(self, x: Batch, dz: Batch) -> Vector:
        """The encoder's gradient for ∂L/∂z, written to `gradient`; returns that part of it, a view."""
        self._graph("encoder.backward").run({"x": x, "dz": dz, **self._parameters}, self._gradients)
        return self.gradient[self.encoder]

    def _encoder_views(self, encoder: Vector | None) -> Mapping[str, Array]:
        if encoder is None:
            return self._parameters
        return {
            t.name: encoder[t.offset : t.offset + t.size].reshape(t.shape)
            for t in self.table.tensors
            if t.part == "encoder"
        }


class GraphShelf:
    """Loaded graphs by the digest of their file, so that rounds and groups that share a graph load it once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._graphs: dict[str, Graph] = {}

    def of(self, manifest: Manifest, locate: Callable[[str, str], Path]) -> Callable[[str], Graph]:
        """A manifest's graphs by name. `locate` gives the file of a graph's name and digest.

        What the manifest does not name is unloaded. The result raises EngineError.
        """
        named = {name: file.digest for name, file in manifest.graphs.items()}
        self._graphs = {digest: graph for digest, graph in self._graphs.items() if digest in named.values()}

        def graph(name: str) -> Graph:
            digest = named[name]
            if digest not in self._graphs:
                self._graphs[digest] = self._engine.load(locate(name, digest))
            return self._graphs[digest]

        return graph
