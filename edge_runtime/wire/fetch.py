"""Fetching blobs from the other end: what to ask for and when, and what of it was lost. No I/O, no clock.

Rules
- What was asked for comes in the order of asking: MQTT keeps the order of a topic, and a sender answers one request
  after the other. So what arrives proves that whatever was asked for before it, and is not here, was lost; that alone
  is asked for again.
- A clock never proves a loss. After a silence, or a connection that was lost, a probe is sent. Its answer, the marker,
  comes behind all that was asked for before it: a false alarm costs a few hundred bytes, never a second copy.
- So much is under way as the pace allows (pace.py), and more is asked for when a third of it is left: few requests, and
  the line never waits.

Both ends use it: a device for a plan's files, the server for a device's update.
"""

# coverage: every branch

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from edge_runtime.wire.blob import Blob, ChunkRun
from edge_runtime.wire.messages import MAX_PROBES, MAX_RUNS, LossProbe, Need
from edge_runtime.wire.pace import Pace

PROBE_S = 10.0
"""Without anything for so long, or four times what a full window takes, the other end is probed …"""
MAX_PROBE_S = 120.0
"""… and after twice as long each time; never after longer than this."""


@dataclass(frozen=True)
class _Part:
    """A run of a blob that is missing."""

    blob: Blob
    run: ChunkRun

    @property
    def size_bytes(self) -> int:
        return self.blob.run_bytes(self.run)

    def holds(self, digest: str, index: int) -> bool:
        return self.blob.digest == digest and self.run.first <= index < self.run.end

    def part(self, first: int, end: int) -> "list[_Part]":
        """Return the chunks of it from `first` up to `end`, if there are any."""
        return [_Part(self.blob, ChunkRun(first, end - first))] if end > first else []


class Fetch:
    """Some blobs that are being fetched over one line. `first_probe` differs from those of earlier processes."""

    def __init__(self, pace: Pace, *, first_probe: int = 0) -> None:
        self.total_bytes = 0
        self._pace = pace
        self._todo: deque[_Part] = deque()
        self._asked: deque[_Part | int] = deque()  # in the order of asking; a number is a probe's
        self._asked_bytes = 0
        self._left_bytes = 0
        self._quiet_since_s = 0.0
        self._patience = 1.0
        self._probe = first_probe
        self._in_doubt = False

    @property
    def done_bytes(self) -> int:
        """How much has come, of `total_bytes`."""
        return self.total_bytes - self._left_bytes

    @property
    def asked_bytes(self) -> int:
        """How much is under way."""
        return self._asked_bytes

    @property
    def wait_s(self) -> float:
        """Seconds of silence after which the other end is probed."""
        return min(MAX_PROBE_S, max(PROBE_S, 4 * self._pace.window_s) * self._patience)

    def lacks(self, digest: str) -> bool:
        """Return whether anything of a blob is to be asked for or under way."""
        return any(not isinstance(part, int) and part.blob.digest == digest for part in (*self._todo, *self._asked))

    def want(self, blob: Blob, runs: Iterable[ChunkRun]) -> None:
        """Fetch these runs, after those that were wanted before."""
        for run in runs:
            part = _Part(blob, run)
            self._todo.append(part)
            self.total_bytes += part.size_bytes
            self._left_bytes += part.size_bytes

    def drop(self, digest: str) -> None:
        """Fetch nothing more of a blob."""
        self._todo = deque(part for part in self._todo if part.blob.digest != digest)
        self._asked = deque(part for part in self._asked if isinstance(part, int) or part.blob.digest != digest)
        self._count()

    def doubt(self) -> None:
        """Note that what is under way may have been lost, with a connection or a process: the other end is probed."""
        self._in_doubt = True

    def requests(self, now_s: float, most_bytes: int | None = None) -> list[Need | LossProbe]:
        """Return what to send now. With `most_bytes` no more than so much is under way, whatever the pace allows."""
        requests: list[Need | LossProbe] = []
        if self._asked_bytes and (self._in_doubt or now_s - self._quiet_since_s >= self.wait_s):
            self._patience = 1.0 if self._in_doubt else 2 * self._patience
            self._quiet_since_s = now_s
            requests += self._probes()
        self._in_doubt = False
        window = self._pace.window_bytes if most_bytes is None else min(self._pace.window_bytes, most_bytes)
        if self._todo and window > 0 and 3 * self._asked_bytes <= window:
            if not self._asked_bytes:
                self._quiet_since_s = now_s
                self._pace.begin(now_s)
            requests += self._needs(window)
        return requests

    def on_run(self, digest: str, run: ChunkRun, now_s: float) -> bool:
        """Count a run that has arrived; False where it was not under way."""
        at = next((at for at, part in enumerate(self._asked) if _holds(part, digest, run.first)), None)
        if at is None:
            return self._take_unasked(digest, run)
        self._pace.on_bytes(_size_bytes(self._asked[at], run), now_s)
        part = self._asked[at]
        assert isinstance(part, _Part)
        self._lose(at, part.part(part.run.first, run.first))
        self._asked.extendleft(part.part(run.end, part.run.end))
        self._heard(now_s)
        return True

    def on_marker(self, number: int, now_s: float) -> None:
        """Take the answer to a probe: what was asked for before it and is not here was lost."""
        if number in self._asked:
            self._lose(self._asked.index(number), [])
            self._heard(now_s)

    def _take_unasked(self, digest: str, run: ChunkRun) -> bool:
        """Strike what has come without having been asked for, by an earlier process perhaps, from what is missing."""
        for at, part in enumerate(self._todo):
            if part.holds(digest, run.first):
                del self._todo[at]
                left = part.part(part.run.first, run.first) + part.part(run.end, part.run.end)
                for each in reversed(left):
                    self._todo.insert(at, each)
                self._count()
                break
        return False

    def _needs(self, window: int) -> list[Need]:
        """Take from what is missing as much as fits the window; a Need for each blob."""
        needs: list[Need] = []
        runs: list[ChunkRun] = []
        digest = self._todo[0].blob.digest
        for taken in range(MAX_RUNS):
            room = window - self._asked_bytes
            if not self._todo or (taken and room < self._todo[0].blob.chunk_bytes):
                break
            part = self._todo.popleft()
            if part.blob.digest != digest:
                needs.append(Need(digest=digest, runs=tuple(runs)))
                runs, digest = [], part.blob.digest
            fitting = max(1, min(self._pace.message_bytes, room) // part.blob.chunk_bytes)
            end = min(part.run.end, part.run.first + fitting)
            (now,) = part.part(part.run.first, end)
            self._todo.extendleft(part.part(end, part.run.end))
            self._asked.append(now)
            self._asked_bytes += now.size_bytes
            runs.append(now.run)
        return [*needs, Need(digest=digest, runs=tuple(runs))]

    def _probes(self) -> list[Need | LossProbe]:
        digest = next(part.blob.digest for part in self._asked if not isinstance(part, int))
        self._probe = (self._probe + 1) % MAX_PROBES
        self._asked.append(self._probe)
        return [LossProbe(digest=digest, number=self._probe)]

    def _lose(self, at: int, last: list[_Part]) -> None:
        """Take what was asked for up to an entry, whose lost part is `last`: all of it but the entry was lost.

        It is asked for again, before all else.
        """
        before = [self._asked.popleft() for _ in range(at + 1)][:-1]
        lost = [part for part in before if isinstance(part, _Part)] + last
        self._todo.extendleft(reversed(lost))

    def _heard(self, now_s: float) -> None:
        self._quiet_since_s, self._patience = now_s, 1.0
        self._count()
        if not self._asked_bytes:
            self._pace.pause()

    def _count(self) -> None:
        self._asked_bytes = sum(part.size_bytes for part in self._asked if not isinstance(part, int))
        self._left_bytes = self._asked_bytes + sum(part.size_bytes for part in self._todo)


def _holds(part: _Part | int, digest: str, index: int) -> bool:
    return isinstance(part, _Part) and part.holds(digest, index)


def _size_bytes(part: _Part | int, run: ChunkRun) -> int:
    """Return the bytes of a run that begins in a part, as far as they are the blob's."""
    assert isinstance(part, _Part)
    return part.blob.run_bytes(ChunkRun(run.first, min(run.end, part.run.end) - run.first))
