"""Asking for a blob's chunks: a window at a time, again when nothing comes, without I/O or clock.

One window is shared by all blobs of a plan. The time to wait follows the link: four times the usual gap between
chunks, at least RETRY_S, doubling while nothing comes. Chunks that others asked for count too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from edge_runtime.wire.blob import WINDOW, Blob

RETRY_S = 2.0
MAX_RETRY_S = 60.0


@dataclass(frozen=True)
class Wanted:
    """A blob that a plan needs, and the indices of its chunks that are not here."""

    blob: Blob
    missing: tuple[int, ...]


class Transfers:
    """The blobs that are on their way. `now_s` is any clock that only goes forward."""

    def __init__(self, wanted: Iterable[Wanted], now_s: float) -> None:
        self._missing = {w.blob.digest: dict.fromkeys(w.missing) for w in wanted}
        self._sizes = {w.blob.digest: w.blob.chunks for w in wanted}
        self._asked: set[tuple[str, int]] = set()
        self._gap_s = 0.0
        self._patience = 1.0
        self._since_s = now_s
        self.total = sum(len(chunks) for chunks in self._missing.values())

    @property
    def digests(self) -> tuple[str, ...]:
        """The blobs that are not whole yet."""
        return tuple(self._missing)

    @property
    def done(self) -> int:
        """Chunks that have come, of `total`."""
        return self.total - sum(len(chunks) for chunks in self._missing.values())

    @property
    def wait_s(self) -> float:
        """How long nothing may come before chunks are asked for again."""
        return min(MAX_RETRY_S, max(RETRY_S, 4 * self._gap_s) * self._patience)

    def ask(self, now_s: float) -> list[tuple[str, tuple[int, ...]]]:
        """What to ask for now: chunks by digest. Nothing while more than half of the window is on its way."""
        if self._asked and now_s - self._since_s >= self.wait_s:
            self._asked.clear()
            self._patience *= 2
        room = WINDOW - len(self._asked)
        if room < WINDOW // 2:
            return []
        if not self._asked:
            self._since_s = now_s
        asks = []
        for digest, missing in self._missing.items():
            chunks = tuple(islice((i for i in missing if (digest, i) not in self._asked), room))
            if chunks:
                asks.append((digest, chunks))
                self._asked.update((digest, i) for i in chunks)
                room -= len(chunks)
        return asks

    def arrived(self, digest: str, index: int, now_s: float) -> bool:
        """A chunk is here; False if it was the last one missing of its blob."""
        gap_s = now_s - self._since_s
        self._gap_s = gap_s if self._gap_s == 0 else 0.8 * self._gap_s + 0.2 * gap_s
        self._patience = 1.0
        self._since_s = now_s
        self._asked.discard((digest, index))
        self._missing[digest].pop(index, None)
        return bool(self._missing[digest])

    def whole(self, digest: str) -> None:
        """A blob is here, verified: nothing of it is missing any more."""
        self._forget(digest)
        del self._missing[digest]

    def restart(self, digest: str) -> None:
        """A blob was thrown away whole: everything of it is missing again."""
        self._forget(digest)
        self._missing[digest] = dict.fromkeys(range(self._sizes[digest]))

    def lost(self) -> None:
        """The link was lost: what was asked for will not come."""
        self._asked.clear()

    def _forget(self, digest: str) -> None:
        self._asked = {(other, i) for other, i in self._asked if other != digest}
