"""The journal: an append-only file of records that outlives the process.

Rules
- Records are appended in one write, a line each: a process that is killed loses at most those that it was writing.
- `sync` makes the disk keep what was written. It may take a while on a memory card, so it works on a descriptor of its
  own and needs no lock: no append waits for it. A power cut loses the records since the last sync.
- The file is never repaired in place: `restart` writes a whole new one beside it and renames it.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from edge_runtime.energy.records import Record, from_lines, to_line
from edge_runtime.wire.files import write_atomic


class Journal:
    """Appends records to a file. Every method raises OSError as the file system does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.size_bytes = 0

    def read(self) -> tuple[list[Record], int]:
        """Return the file's records, and how many torn lines were left out; no records if there is no file."""
        try:
            return from_lines(self._path.read_bytes())
        except FileNotFoundError:
            return [], 0

    def restart(self, records: Iterable[Record]) -> None:
        """Go on in a new file that begins with `records`, in place of the one there."""
        content = b"".join(map(to_line, records))
        self.close()
        write_atomic(self._path, content)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.size_bytes = len(content)

    def append(self, *records: Record) -> None:
        """Add records; `restart` comes first."""
        assert self._descriptor is not None
        lines = b"".join(map(to_line, records))
        written = os.write(self._descriptor, lines)
        self.size_bytes += written
        if written < len(lines):
            raise OSError(28, "no space left for the energy journal", str(self._path))

    def descriptor(self) -> int | None:
        """Return a descriptor of the file for `sync`, which closes it."""
        return None if self._descriptor is None else os.dup(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def sync(descriptor: int) -> None:
    """Wait until the disk keeps what was appended, and close the descriptor. Raises OSError."""
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
