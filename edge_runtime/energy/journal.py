"""The journal: an append-only file of records that outlives the process.

Rules
- Each record is one write of one line: a process that is killed loses at most the record that it was writing.
- The disk is told to keep what was written every `sync_s` seconds, so a power cut costs that much. 0 is after each
  record; a memory card pays for it.
- The file is never repaired in place: `restart` writes a whole new one beside it and renames it.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from edge_runtime.energy.records import Record, from_lines, to_line
from edge_runtime.wire.files import write_whole


class Journal:
    """Appends records to a file. Every method raises OSError as the file system does."""

    def __init__(self, path: Path, *, clock: Callable[[], float], sync_s: float = 1.0) -> None:
        self._path = path
        self._clock = clock
        self._sync_s = sync_s
        self._synced_s = clock()
        self._descriptor: int | None = None
        self.size_bytes = 0

    def read(self) -> tuple[list[Record], int]:
        """What the file holds, and how many torn lines were left out; nothing if there is no file."""
        try:
            return from_lines(self._path.read_bytes())
        except FileNotFoundError:
            return [], 0

    def restart(self, records: Iterable[Record]) -> None:
        """Go on in a new file that begins with `records`, in place of the one there."""
        content = b"".join(map(to_line, records))
        self.close()
        write_whole(self._path, content)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.size_bytes = len(content)

    def append(self, record: Record) -> None:
        """Add a record; `restart` comes first."""
        assert self._descriptor is not None
        line = to_line(record)
        written = os.write(self._descriptor, line)
        self.size_bytes += written
        if written < len(line):
            raise OSError(28, "no space left for the energy journal", str(self._path))
        now_s = self._clock()
        if now_s - self._synced_s >= self._sync_s:
            self._synced_s = now_s
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
