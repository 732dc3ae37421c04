"""A blob of a plan that is not on the device yet, or not all of it."""

# coverage: every branch

from dataclasses import dataclass

from edge_runtime.wire.blob import Blob, ChunkRun


@dataclass(frozen=True)
class MissingBlob:
    """A blob that a plan needs, and the runs of its missing chunks."""

    blob: Blob
    runs: tuple[ChunkRun, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes that are missing."""
        return sum(self.blob.run_bytes(run) for run in self.runs)
