"""The writer of the runs of devices' updates: the loop goes on meanwhile, and hears what came of each.

Rules
- A device's runs are written in their order, those of different devices side by side, so that one flush does not wait
  for another. Whoever puts them bounds their bytes (transfers.py).
- A run whose blob is complete with it has been checked and flushed when it is done.
"""

# coverage: every branch

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from edge_runtime.wire.blob import Assembly, ChunkRun
from edge_runtime.wire.errors import BlobInvalid

THREADS = 4


@dataclass
class Write:
    """A run of a device's blob that is to be written, or was."""

    device: str
    assembly: Assembly
    run: ChunkRun
    data: bytes
    is_complete: bool = False
    fault: BlobInvalid | OSError | None = None
    """Why the run, or the blob that was complete with it, is not here."""

    def do(self) -> None:
        """Write the run."""
        try:
            # Where another assembly of the same content was faster, this run adds nothing.
            self.is_complete = self.assembly.accept(self.run.first, self.data) or self.assembly.is_complete
        except (BlobInvalid, OSError) as exc:
            self.fault = exc


class RunWriter(Protocol):
    """A seam, so that simulations and tests write at once."""

    def put(self, write: Write) -> None:
        """Write a run, now or soon."""
        ...

    def done(self) -> list[Write]:
        """Return what was written since the last call, or could not be."""
        ...


class ImmediateWriter:
    """Writes at once."""

    def __init__(self) -> None:
        self._done: list[Write] = []

    def put(self, write: Write) -> None:
        """Write a run."""
        write.do()
        self._done.append(write)

    def done(self) -> list[Write]:
        """Return what was written."""
        done, self._done = self._done, []
        return done


class ThreadedWriter:
    """Writes on threads; `wake` is called there when a blob is complete, or a run could not be written."""

    def __init__(self, wake: Callable[[], None], threads: int = THREADS) -> None:
        self._wake = wake
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self._changing = threading.Lock()  # guards both
        self._waiting: dict[str, deque[Write]] = {}  # of each device whose turn has come
        self._done: list[Write] = []

    def put(self, write: Write) -> None:
        """Write a run soon, after those of its device that were put before."""
        with self._changing:
            if write.device in self._waiting:
                self._waiting[write.device].append(write)
                return
            self._waiting[write.device] = deque([write])
        self._pool.submit(self._write_all, write.device)

    def done(self) -> list[Write]:
        """Return what was written."""
        with self._changing:
            done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Write nothing more; what is being written is finished first."""
        self._pool.shutdown(cancel_futures=True)

    def _write_all(self, device: str) -> None:
        """Write what waits of a device until nothing does."""
        while True:
            with self._changing:
                waiting = self._waiting[device]
                if not waiting:
                    del self._waiting[device]
                    return
                write = waiting.popleft()
            write.do()
            with self._changing:
                self._done.append(write)
            if write.is_complete or write.fault:
                self._wake()
