"""The server's state folder: its key, its journal, its blobs, where it listens, and a lock for one server at a time.

state/server.key              Ed25519, readable by its owner alone
state/federation.sqlite3      the journal
state/blobs/                  weights, manifests and graphs, by digest
state/url                     where devices find the server that ran last
state/lock                    held while a server runs
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from broker_server.rounds.journal import FederationJournal
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.files import write_atomic

JOURNAL = "federation.sqlite3"
BLOBS = "blobs"
URL = "url"
LOCK = "lock"


class StateBusy(RuntimeError):
    """Another server uses this state folder."""


class StateFolder:
    """A state folder, locked for this process until `close`. Raises StateBusy; OSError as the file system does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(self._lock)
            raise StateBusy(
                f"another server uses the state folder {path}: stop it, or name another one with --state"
            ) from exc

    def clear(self) -> None:
        """Delete the federation; the key, and with it every device's token, stays valid."""
        for path in self.path.glob(f"{JOURNAL}*"):
            path.unlink()
        shutil.rmtree(self.path / BLOBS, ignore_errors=True)

    def open(self, clock: Callable[[], float] = time.time) -> tuple[FederationJournal, BlobStore]:
        """Return the journal, whose times are `clock`'s, and the blobs. Raises JournalInvalid."""
        return FederationJournal(self.path / JOURNAL, clock), BlobStore(self.path / BLOBS)

    def set_url(self, url: str) -> None:
        """Keep where devices find the server, for those enrolled later."""
        write_atomic(self.path / URL, f"{url}\n".encode())

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)


def read_url(path: Path) -> str | None:
    """Return the URL of the server that last ran on a state folder; None if none did."""
    try:
        return (path / URL).read_text().strip()
    except FileNotFoundError:
        return None
