"""The state folder: one process at a time, and a finished update that survives a power cut.

state/lock            held by the running agent
state/pending.json    the plan that was worked on and its result, until the server has acknowledged it
state/blobs/          manifests and graphs, kept for reuse
state/weights/        the weights of the present plan, and those of the update
state/uplink.json     the measured speeds of the link
"""

import fcntl
import logging
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.messages import Evaluation, Plan, Update

MAX_PENDING_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


class StateUnusable(OSError):
    """The state folder cannot be used: it is not writable, or another process uses it."""


class Pending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan with a result that the server has not acknowledged yet."""

    plan: Plan
    result: Update | Evaluation


class LinkSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """The speeds of the link, up and down, as measured; None where nothing was."""

    bytes_per_s: Annotated[float, Meta(gt=0)] | None = None
    down_bytes_per_s: Annotated[float, Meta(gt=0)] | None = None

    def differ_from(self, other: "LinkSpeeds") -> bool:
        """Return whether they are worth saving where `other` was saved: more than a tenth away from it."""
        pairs = ((self.bytes_per_s, other.bytes_per_s), (self.down_bytes_per_s, other.down_bytes_per_s))
        return any(now is not None and (then is None or abs(now - then) > then / 10) for now, then in pairs)


class State:
    """The state folder, locked until it is closed. Raises StateUnusable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.blobs = BlobStore(root / "blobs")
            self.weights = BlobStore(root / "weights")
            self._lock = (root / "lock").open("ab")
        except OSError as exc:
            raise StateUnusable(f"the state folder {root} cannot be used: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.close()
            raise StateUnusable(f"another process uses the state folder {root}: stop it, or name another one") from exc

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    @property
    def _journal(self) -> Path:
        return self.root / "pending.json"

    def pending_result(self) -> Pending | None:
        """Return the result that was not acknowledged yet, if its weights are still here."""
        try:
            if self._journal.stat().st_size > MAX_PENDING_BYTES:
                raise msgspec.ValidationError("it is too large")
            pending = msgspec.json.decode(self._journal.read_bytes(), type=Pending)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            _log.warning("%s cannot be read and was renamed to .bad, so its plan is done again: %s", self._journal, exc)
            self._journal.replace(self._journal.with_suffix(".bad"))
            return None
        if isinstance(pending.result, Update) and pending.result.weights.digest not in self.weights:
            _log.warning("the weights of the update of round %d are gone: it is dropped", pending.plan.round)
            self.drop_result()
            return None
        return pending

    def save_result(self, pending: Pending, weights: bytes | None) -> None:
        """Save a result for the processes after this one: its weights first, then the journal. Raises StateUnusable."""
        try:
            if weights is not None:
                self.weights.add(weights)
            write_atomic(self._journal, msgspec.json.encode(pending))
        except OSError as exc:
            raise StateUnusable(f"an update cannot be written to {self.root}: {exc.strerror}") from exc

    def drop_result(self) -> None:
        """Delete the saved result. Raises StateUnusable."""
        try:
            self._journal.unlink(missing_ok=True)
        except OSError as exc:
            raise StateUnusable(f"{self._journal} cannot be removed: {exc.strerror}") from exc

    def speeds(self) -> LinkSpeeds:
        """Return the link's speeds as they were last measured."""
        try:
            return msgspec.json.decode((self.root / "uplink.json").read_bytes(), type=LinkSpeeds)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return LinkSpeeds()

    def save_speeds(self, speeds: LinkSpeeds) -> None:
        """Save the link's speeds for the processes after this one. Raises StateUnusable."""
        try:
            write_atomic(self.root / "uplink.json", msgspec.json.encode(speeds))
        except OSError as exc:
            raise StateUnusable(f"the link's speeds cannot be written to {self.root}: {exc.strerror}") from exc
