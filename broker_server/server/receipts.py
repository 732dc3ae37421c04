"""Receipts: what devices have signed, and what the server made of it. One JSON object a line, only appended.

    {"at": "2026-11-30T12:00:00Z", "device": "kitchen", "what": "update", "round": 3, "group": "depth",
     "digest": "9f2c…", "accepted": true, "signed": "base64 of the envelope"}

`digest` is that of the update's file, and of an evaluation or a Hello that of the message. The envelope's signature is
by the device's own key, over all of the message: a line proves what the device has said, to anybody who has that key. A
Hello that says what the last one of the same key said has no line, nor has anything beyond a device's allowance.
"""

import base64
import datetime as dt
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker_server.server.allowance import Allowance
from edge_runtime.wire.envelope import KEY_BYTES

RECEIPTS = "receipts.jsonl"
_SECRET = 0o600
_BURST, _PER_S = 100, 0.1
_RESULTS = {"update", "evaluation"}


class _Weights(msgspec.Struct, frozen=True):
    digest: str


class _Said(msgspec.Struct, frozen=True):
    """What of a message matters here; the dispatcher reads all of it."""

    type: str
    round: int | None = None
    group: str | None = None
    weights: _Weights | None = None
    accepted: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class _Unanswered:
    said: _Said
    digest: str
    envelope: bytes


class Receipts:
    """The receipts of a state folder. A file that cannot be written stops nothing."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = state / RECEIPTS
        self._clock = clock
        self._allowance = Allowance(burst=_BURST, per_s=_PER_S)
        self._results: dict[str, _Unanswered] = {}
        self._hellos: dict[str, tuple[bytes, str]] = {}

    def heard(self, device: str, envelope: bytes, body: bytes) -> None:
        """Take an event whose signature was good."""
        said = _said(body)
        if said is None:
            return
        digest = said.weights.digest if said.weights is not None else hashlib.sha256(body).hexdigest()
        if said.type in _RESULTS:
            self._results[device] = _Unanswered(said, digest, envelope)
        elif said.type == "hello" and self._hellos.get(device) != (envelope[:KEY_BYTES], digest):
            self._hellos[device] = envelope[:KEY_BYTES], digest
            self._add(device, _Unanswered(said, digest, envelope), {})

    def answered(self, device: str, body: bytes) -> None:
        """Take a command of the server's: an Ack is the verdict on the device's last result."""
        held = self._results.get(device)
        said = None if held is None else _said(body)
        if held is None or said is None or said.type != "ack" or said.round != held.said.round:
            return
        del self._results[device]
        verdict: dict[str, object] = {"round": said.round, "group": said.group, "accepted": said.accepted}
        self._add(device, held, verdict | ({"why": said.detail} if said.detail else {}))

    def _add(self, device: str, held: _Unanswered, verdict: dict[str, object]) -> None:
        now_s = self._clock()
        if not self._allowance.take(device, now_s):
            return
        at = dt.datetime.fromtimestamp(now_s, dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = {"at": at, "device": device, "what": held.said.type, **verdict, "digest": held.digest}
        line["signed"] = base64.b64encode(held.envelope).decode()
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _SECRET)
        except OSError:
            return
        try:
            os.write(file, msgspec.json.encode(line) + b"\n")
        except OSError:  # a full disk: what else happens says so
            return
        finally:
            os.close(file)


def _said(body: bytes) -> _Said | None:
    try:
        return msgspec.json.decode(body, type=_Said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
