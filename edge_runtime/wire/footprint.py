"""The memory that a bundle's graphs take on a device, as the exporter has worked it out.

For each graph file, by its digest: its nodes, what a run takes at most while it lasts (beside the arrays that go in and
out), and what it leaves in the engine's memory for another graph. edge_runtime.wire.budget makes plans of it.
"""

# coverage: every branch

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.names import Digest

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
"""The micro-batches for which the exporter works out the memory of a run."""
MAX_GRAPHS = 4096

Bytes = Annotated[int, Meta(ge=0, le=2**50)]


class GraphFootprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The memory of one graph."""

    nodes: Annotated[int, Meta(ge=0, le=10_000_000)]
    """The nodes of the graph as the engine runs it: each costs memory while the graph is loaded."""
    transient_bytes: Annotated[tuple[Bytes, ...], Meta(min_length=len(MICRO_BATCHES), max_length=len(MICRO_BATCHES))]
    """Bytes while it runs, for each of MICRO_BATCHES."""
    held_bytes: tuple[Bytes, Bytes] = (0, 0)
    """Bytes afterwards, for the graph that reads the saved activations: fixed, and for each sample."""

    def transient(self, batch: int) -> int:
        """Return the bytes while it runs on a micro-batch: on straight lines between and beyond those worked out."""
        points = tuple(zip(MICRO_BATCHES, self.transient_bytes, strict=True))
        segment = next((pair for pair in pairwise(points) if batch <= pair[1][0]), points[-2:])
        (low, low_bytes), (high, high_bytes) = segment
        return low_bytes + max(0, high_bytes - low_bytes) * (batch - low) // (high - low)

    def held(self, batch: int) -> int:
        """Return the bytes that stay held after a run on a micro-batch."""
        return self.held_bytes[0] + self.held_bytes[1] * batch


class Footprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The memory of all graphs of a bundle, by the digests of their files."""

    graphs: Annotated[dict[Digest, GraphFootprint], Meta(max_length=MAX_GRAPHS)]

    def of(self, digests: Collection[str]) -> "Footprint":
        """Return the footprint of some of the files."""
        return Footprint(graphs={digest: graph for digest, graph in self.graphs.items() if digest in digests})
