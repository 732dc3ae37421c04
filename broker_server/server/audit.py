"""The audit log: who came, who was refused and why, and what the operator did. One JSON object a line, only appended.

    {"at": "2026-11-30T12:00:00Z", "what": "refused", "device": "kitchen", "why": "its code has expired …"}

A line is one write to a file that is opened to append, so that several processes do not mix theirs. What strangers can
cause is bounded: beyond an allowance lines are counted, and the count is said with the next one.
"""

import datetime as dt
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from broker_server.server.allowance import Allowance
from devices.cli.text import MAX_SHOWN, printable

AUDIT = "audit.jsonl"
Act = Literal[
    "started",
    "stopped",
    "connected",
    "refused",
    "noted",
    "enrolled",
    "revoked",
    "configured",
    "paused",
    "resumed",
    "dropped",
    "stopping",
]
_SECRET = 0o600
_BURST, _PER_S = 200, 2.0


class AuditLog:
    """The audit log of a state folder. May be used from any thread. A log that cannot be written stops nothing."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = state / AUDIT
        self._clock = clock
        self._allowance = Allowance(burst=_BURST, per_s=_PER_S)
        self._left_out = 0
        self._lock = threading.Lock()

    def add(self, what: Act, *, device: str = "", why: str = "") -> None:
        """Append a line, unless there were too many of its kind."""
        now_s = self._clock()
        with self._lock:
            if not self._allowance.take(what, now_s):
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
            at = dt.datetime.fromtimestamp(now_s, dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            line: dict[str, object] = {"at": at, "what": what}
            if device:
                line["device"] = printable(device, 100)
            if why:
                line["why"] = printable(why, MAX_SHOWN)
            if left_out:
                line["left_out_before"] = left_out
            self._write(msgspec.json.encode(line) + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _SECRET)
        except OSError:
            return
        try:
            os.write(file, line)
        except OSError:  # a full disk: what else happens says so
            return
        finally:
            os.close(file)
