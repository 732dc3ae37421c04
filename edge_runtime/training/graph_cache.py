"""A manifest's graphs and fixed tensors, loaded once for all manifests that have them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.training.encoder import Inputs
from edge_runtime.training.engine import Engine, Graph
from edge_runtime.training.graph_arrays import named
from edge_runtime.wire.bundle_cost import check_costs
from edge_runtime.wire.bundle_folder import read_fixed
from edge_runtime.wire.graph_cost import GraphCost, graph_cost
from edge_runtime.wire.manifest import FIXED, Manifest
from edge_runtime.wire.operators import check_graph_file

if TYPE_CHECKING:
    from edge_runtime.wire.tensors import Vector


@dataclass(frozen=True, eq=False)
class Graphs:
    """A manifest's graphs by name, loaded when they are called for, and its fixed tensors."""

    load: Callable[[str], Graph]
    fixed: Mapping[str, Inputs]
    """Fixed tensors by part, under their names in the graphs."""

    def __call__(self, name: str) -> Graph:
        """Return a loaded graph. Raises EngineError."""
        return self.load(name)


class GraphCache:
    """Loaded graphs by the digest of their file, so that rounds and groups that share a graph load it once.

    All graphs of a manifest are checked before any is loaded, and what they take, and so are its fixed tensors.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._graphs: dict[str, Graph] = {}
        self._costs: dict[tuple[str, int], GraphCost] = {}
        self._fixed: dict[str, Vector] = {}

    def of(self, manifest: Manifest, locate: Callable[[str, str], Path], batch: int = 1) -> Graphs:
        """Return a manifest's graphs and fixed tensors, for micro-batches of at most so many samples.

        `locate` returns the file of a name, of `manifest.files`, and a digest. What other manifests have is unloaded.
        Raises BundleInvalid, and the graphs when they are called for EngineError.
        """
        digests = {name: file.digest for name, file in manifest.files.items()}
        costs = {}
        for name in manifest.graphs:
            key = digests[name], batch
            if key not in self._costs:
                self._costs[key] = graph_cost(check_graph_file(locate(name, digests[name]), name), name, batch)
            costs[name] = self._costs[key]
        check_costs(manifest, costs, batch)
        self._costs = {key: cost for key, cost in self._costs.items() if key[0] in digests.values()}
        self._graphs = {digest: graph for digest, graph in self._graphs.items() if digest in digests.values()}
        vectors = {digest: vector for digest, vector in self._fixed.items() if digest in digests.values()}
        fixed: dict[str, Inputs] = {}
        for part, tensors in manifest.fixed.items():
            digest = tensors.file.digest
            if digest not in vectors:
                vectors[digest] = read_fixed(locate(f"{FIXED}.{part}", digest), tensors)
            fixed |= named(tensors.table, vectors[digest], "param")
        self._fixed = vectors

        def load(name: str) -> Graph:
            digest = digests[name]
            if digest not in self._graphs:
                self._graphs[digest] = self._engine.load(locate(name, digest))
            return self._graphs[digest]

        return Graphs(load, fixed)
