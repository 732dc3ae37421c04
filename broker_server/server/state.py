"""The server's state folder: its key, its journal, its blobs, where it listens, and a lock for one server at a time.

state/server.key, signing.key  Ed25519, readable by their owner alone (keys.py)
state/federation.sqlite3      the journal
state/blobs/                  weights, manifests and graphs, by digest
state/uploads/DEVICE/         what a device has sent, apart from the server's own
state/devices/                who is enrolled (enrolments.py)
state/counter                 ahead of the numbers of the messages that were sent
state/url                     where devices find the server that ran last
state/audit.jsonl             who came, who was refused, what the operator did
state/receipts.jsonl          what devices have signed, and what became of it (receipts.py)
state/control.sock            where the operator's commands reach the server that runs
state/page.token              by which an operator logs in to the live page
state/lock                    held while a server runs
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.journal import FederationJournal, JournalInvalid
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.files import write_atomic

JOURNAL = "federation.sqlite3"
BLOBS = "blobs"
UPLOADS = "uploads"
URL = "url"
COUNTER = "counter"
PRIVATE = 0o700
LOCK = "lock"


class StateBusy(RuntimeError):
    """Another server uses this state folder."""


class StateMissing(LookupError):
    """There is no such state folder."""


def existing(path: Path) -> Path:
    """Return a state folder that is there. Raises StateMissing."""
    if not path.is_dir():
        raise StateMissing(f"{path} is not a state folder: name the server's with --state or --config")
    return path


class StateFolder:
    """A state folder, locked for this process until `close`. Raises StateBusy; OSError as the file system does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
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
        for name in (BLOBS, UPLOADS):
            shutil.rmtree(self.path / name, ignore_errors=True)

    @property
    def uploads(self) -> DeviceUploads:
        """What devices have sent."""
        return DeviceUploads(self.path / UPLOADS)

    def open(self, clock: Callable[[], float] = time.time) -> tuple[FederationJournal, BlobStore]:
        """Return the journal, whose times are `clock`'s, and the blobs. Raises JournalInvalid, JournalUnwritable.

        A journal that is gone or empty beside blobs of a federation is damage, and never the begin of another one.
        """
        journal, blobs = self.path / JOURNAL, self.path / BLOBS
        is_empty = not journal.exists() or journal.stat().st_size == 0
        if is_empty and blobs.is_dir() and any(blobs.iterdir()):
            raise JournalInvalid(
                f"{journal} is {'empty' if journal.exists() else 'gone'}, but {blobs} has the weights of a federation: "
                "restore the state folder from a backup, or begin again with --new"
            )
        return FederationJournal(journal, clock), BlobStore(blobs)

    def set_url(self, url: str, *, certificate: Literal["own", "other"]) -> None:
        """Keep where devices find the server, and whose certificate it shows there, for those enrolled later."""
        write_atomic(self.path / URL, f"{url}\n{certificate}\n".encode())

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)


def read_url(path: Path) -> str | None:
    """Return the URL of the server that last ran on a state folder; None if none did."""
    try:
        return (path / URL).read_text().split("\n")[0]
    except FileNotFoundError:
        return None


def has_own_certificate(path: Path) -> bool:
    """Return whether the server shows a certificate of its own CA, as it does unless it last ran otherwise."""
    try:
        return (path / URL).read_text().split("\n")[1:2] != ["other"]
    except FileNotFoundError:
        return True
