"""The devices that are enrolled: a file for each, by which the server knows its key and whether it may still come.

state/devices/NAME.json     generation, code, key, token, whether it is revoked; readable by the server's owner alone
state/devices/NAME.seen     the boot and the number of the message that began it
state/devices/lock          held while a file is changed

Rules
- Enrolling a device again makes a new generation: tokens, codes and keys of the one before are worth nothing.
- A code is good once: for the first key that comes with it, before it expires. The key stays until the next enrolment.
- Files are read again when they have changed, so what a command writes holds at once for the server that runs.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.names import is_device_id

DEVICES = "devices"
CODE_BYTES = 16
CODE_S = 30 * 86_400.0
"""How long a code may wait for its device's first message."""
_SECRET = 0o600
_PRIVATE = 0o700


class IssuedCertificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate that a device was given at one of its enrolments, by its serial number in hexadecimal."""

    serial: Annotated[str, Meta(pattern=r"^[0-9a-f]{1,40}\Z")]
    generation: Annotated[int, Meta(ge=1, le=2**31)]
    until_s: float


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """One device. `key` is None before its first message. Times are in seconds since the epoch."""

    generation: Annotated[int, Meta(ge=1, le=2**31)]
    code: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    code_until_s: float
    enrolled_s: float
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    revoked: bool = False
    token: str | None = None
    """The token that it was given: its password on a broker of others."""
    issued: tuple[IssuedCertificate, ...] = ()
    """Its certificates that have not expired, those of earlier enrolments too."""
    certificate: str | None = None
    """The last of them (PEM) that is for its own key; None before it has one."""


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last boot of a device that the server has heard of, and the number of its first message."""

    boot: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    counter: Annotated[int, Meta(ge=0, le=2**62)]


class Enrolments:
    """The enrolled devices of a state folder. Methods raise OSError as the file system does."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._root = state / DEVICES
        self._clock = clock
        self._read: dict[str, tuple[Path, tuple[int, int, int], Enrolment | None]] = {}

    def names(self) -> list[str]:
        """Return the names of all devices that were ever enrolled, in order."""
        return sorted(path.stem for path in self._root.glob("*.json") if is_device_id(path.stem))

    def current(self) -> list[str]:
        """Return the names of the devices that may come, in order."""
        found = ((name, self.find(name)) for name in self.names())
        return [name for name, enrolment in found if enrolment is not None and not enrolment.revoked]

    def find(self, device: str) -> Enrolment | None:
        """Return a device's enrolment; None if it has none, or one that cannot be read."""
        if not is_device_id(device):
            return None
        known = self._read.get(device)
        path = self._path(device) if known is None else known[0]
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if known is None or known[1] != stamp:
                known = self._read[device] = (path, stamp, _decoded(path.read_bytes()))
            return known[2]
        except FileNotFoundError:
            return None

    def is_current(self, device: str, generation: int) -> bool:
        """Return whether a device may come with what it was given at this enrolment."""
        found = self.find(device)
        return found is not None and not found.revoked and found.generation == generation

    def has_key(self, device: str) -> bool:
        """Return whether a device has brought the key of its present enrolment."""
        found = self.find(device)
        return found is not None and found.key is not None

    def enrol(self, device: str) -> Enrolment:
        """Enrol a device, anew if it was enrolled before."""
        with self._changing():
            before = self.find(device)
            now_s = self._clock()
            made = Enrolment(
                generation=1 if before is None else before.generation + 1,
                code=secrets.token_hex(CODE_BYTES),
                code_until_s=now_s + CODE_S,
                enrolled_s=now_s,
                issued=() if before is None else before.issued,
            )
            self._seen_path(device).unlink(missing_ok=True)
            self._write(device, made)
            return made

    def pin(self, device: str, generation: int, key: str) -> bool:
        """Keep the key of a device that has none; return False if it was enrolled anew meanwhile."""
        with self._changing():
            found = self.find(device)
            if found is None or found.generation != generation or found.key is not None:
                return False
            self._write(device, msgspec.structs.replace(found, key=key))
            return True

    def set_token(self, device: str, generation: int, token: str) -> None:
        """Keep the token that a device was given at this enrolment."""
        with self._changing():
            found = self.find(device)
            if found is not None and found.generation == generation:
                self._write(device, msgspec.structs.replace(found, token=token))

    def add_certificate(self, device: str, made: IssuedCertificate, certificate: str | None) -> None:
        """Keep what a device was given: its certificate (PEM) where that is for its own key, else its number alone."""
        with self._changing():
            found = self.find(device)
            if found is None:
                return
            kept = tuple(each for each in found.issued if each.until_s > self._clock())
            if made.generation == found.generation and certificate is not None:
                found = msgspec.structs.replace(found, certificate=certificate)
            self._write(device, msgspec.structs.replace(found, issued=(*kept, made)))

    def revoke(self, device: str) -> bool:
        """Revoke a device: it may not come again before it is enrolled anew. Return False if there is none."""
        with self._changing():
            found = self.find(device)
            if found is None:
                return False
            self._write(device, msgspec.structs.replace(found, revoked=True))
            return True

    def seen(self, device: str) -> Seen | None:
        """Return the last boot of a device that was heard of."""
        try:
            return msgspec.json.decode(self._seen_path(device).read_bytes(), type=Seen)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def set_seen(self, device: str, seen: Seen) -> None:
        """Keep a device's boot."""
        write_atomic(self._seen_path(device), msgspec.json.encode(seen), mode=_SECRET)

    def _write(self, device: str, enrolment: Enrolment) -> None:
        write_atomic(self._path(device), msgspec.json.encode(enrolment), mode=_SECRET)
        self._read.pop(device, None)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
        lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _SECRET)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _path(self, device: str) -> Path:
        return self._root / f"{device}.json"

    def _seen_path(self, device: str) -> Path:
        return self._root / f"{device}.seen"


def _decoded(data: bytes) -> Enrolment | None:
    try:
        return msgspec.json.decode(data, type=Enrolment)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
