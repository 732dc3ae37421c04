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


Step = Callable[[Batch, Targets, Vector, Vector], dict[str, float]]
"""Another engine's whole step: x, targets and weights to losses by task, and all gradients into the last vector."""


class Model:
    """The graphs of a manifest and one vector of parameters, changed in place as training goes on."""

    def __init__(
        self, manifest: Manifest, graph: Callable[[str], Graph], weights: Vector, whole: Step | None = None
    ) -> None:
        """`graph` gives a loaded graph by its name when it is first needed; `weights` (D,) is copied.

        `whole` computes what `learn` needs in one run; without it the parts' graphs do.
        """
        self.manifest = manifest
        self.tasks = manifest.task_names
        self.table = manifest.table
        self.table.check(weights)
        self.weights = np.array(weights)
        self.gradient = np.zeros_like(self.weights)
        self._parameters = self._named("param", self.weights)
        self._gradients = self._named("grad", self.gradient)
        self._graph = graph
        self._whole = whole

    @property
    def encoder(self) -> slice:
        """Where the encoder's parameters are in the vectors."""
        return self.table.parts["encoder"]

    def represent(self, x: Batch, *, encoder: Vector | None = None) -> Batch:
        """The representation z (B, …); of other encoder parameters if they are given."""
        z = np.empty((len(x), *self.manifest.representation.shape), np.float32)
        parameters = self._parameters if encoder is None else self._named("param", encoder)
        self._graph("encoder.forward").run({"x": x, **parameters["encoder"]}, {"z": z})
        return z

    def learn(self, x: Batch, targets: Targets) -> dict[str, float]:
        """The losses by task, with all gradients in `gradient`: the encoder's of Σ ∂L_i/∂z · 1/√T."""
        if self._whole is not None:
            return self._whole(x, targets, self.weights, self.gradient)
        z = self.represent(x)
        total, dz = np.zeros_like(z), np.empty_like(z)
        losses: dict[str, float] = {}
        for task in self.tasks:
            losses[task] = self.step(task, z, targets[task], dz)
            total += dz
        self.backward(x, self.shared(total))
        return losses

    def shared(self, total: Batch) -> Batch:
        """What the encoder receives of Σ ∂L_i/∂z, in place: 1/√T of it."""
        total *= np.float32(1 / np.sqrt(len(self.tasks)))
        return total

    def step(self, task: str, z: Batch, target: Array, dz: Batch) -> float:
        """One head's loss; ∂L/∂z goes to `dz`, the head's gradients to `gradient`."""
        loss = np.empty((), np.float32)
        part = f"head.{task}"
        outputs = {"loss": loss, "dz": dz, **self._gradients[part]}
        self._graph(f"{part}.step").run({"z": z, "target": target, **self._parameters[part]}, outputs)
        return float(loss)

    def loss(self, task: str, z: Batch, target: Array) -> float:
        """One head's loss alone."""
        loss = np.empty((), np.float32)
        inputs = {"z": z, "target": target, **self._parameters[f"head.{task}"]}
        self._graph(f"head.{task}.loss").run(inputs, {"loss": loss})
        return float(loss)

    def predict(self, task: str, z: Batch) -> Batch:
        """One head's prediction (B, …)."""
        prediction = np.empty((len(z), *self.manifest.task(task).prediction.shape), np.float32)
        inputs = {"z": z, **self._parameters[f"head.{task}"]}
        self._graph(f"head.{task}.predict").run(inputs, {"prediction": prediction})
        return prediction

    def backward(self, x: Batch, dz: Batch) -> Vector:
        """The encoder's gradient for ∂L/∂z, written to `gradient`; returns that part of it, a view."""
        inputs = {"x": x, "dz": dz, **self._parameters["encoder"]}
        self._graph("encoder.backward").run(inputs, self._gradients["encoder"])
        return self.gradient[self.encoder]

    def _named(self, kind: str, vector: Vector) -> dict[str, dict[str, Array]]:
        """Views of a vector by part, under the names that the graphs give them; the encoder's part may be alone."""
        named: dict[str, dict[str, Array]] = {part: {} for part in self.table.parts}
        for tensor in self.table.tensors:
            view = vector[tensor.offset : tensor.offset + tensor.size]
            if len(view) == tensor.size:
                named[tensor.part][f"{kind}.{tensor.name.removeprefix(f'{tensor.part}.')}"] = view.reshape(tensor.shape)
        return named


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
