"""Requests for a blob's chunks: a window at a time, again when none arrives, without I/O or clock.

One window is shared by all blobs of a plan. The time to wait follows the link: four times the usual gap between
chunks, at least RETRY_S, doubling while none arrives. Chunks that other devices requested count too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from edge_runtime.wire.blob import WINDOW, Blob

RETRY_S = 2.0
MAX_RETRY_S = 60.0


@dataclass(frozen=True)
class MissingBlob:
    """A blob that a plan needs, and the indices of its missing chunks."""

    blob: Blob
    chunks: tuple[int, ...]


class Transfers:
    """The blobs that are on their way. `now_s` is any clock that only goes forward."""

    def __init__(self, missing: Sequence[MissingBlob], now_s: float) -> None:
        self._missing = {each.blob.digest: dict.fromkeys(each.chunks) for each in missing}
        self._sizes = {each.blob.digest: each.blob.chunks for each in missing}
        self._requested: set[tuple[str, int]] = set()
        self._gap_s = 0.0
        self._patience = 1.0
        self._since_s = now_s
        self.total = sum(len(chunks) for chunks in self._missing.values())

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the blobs that are not complete yet."""
        return tuple(self._missing)

    @property
    def done(self) -> int:
        """How many chunks have arrived, of `total`."""
        return self.total - sum(len(chunks) for chunks in self._missing.values())

    @property
    def wait_s(self) -> float:
        """Seconds without a chunk after which chunks are requested again."""
        return min(MAX_RETRY_S, max(RETRY_S, 4 * self._gap_s) * self._patience)

    def next_requests(self, now_s: float) -> list[tuple[str, tuple[int, ...]]]:
        """Return the chunks to request now, by digest; none while more than half of the window is on its way."""
        if self._requested and now_s - self._since_s >= self.wait_s:
            self._requested.clear()
            self._patience *= 2
        room = WINDOW - len(self._requested)
        if room < WINDOW // 2:
            return []
        if not self._requested:
            self._since_s = now_s
        requests = []
        for digest, missing in self._missing.items():
            chunks = tuple(islice((i for i in missing if (digest, i) not in self._requested), room))
            if chunks:
                requests.append((digest, chunks))
                self._requested.update((digest, i) for i in chunks)
                room -= len(chunks)
        return requests

    def on_chunk(self, digest: str, index: int, now_s: float) -> bool:
        """Count a chunk that has arrived; False if it was the last one missing of its blob."""
        gap_s = now_s - self._since_s
        self._gap_s = gap_s if self._gap_s == 0 else 0.8 * self._gap_s + 0.2 * gap_s
        self._patience = 1.0
        self._since_s = now_s
        self._requested.discard((digest, index))
        self._missing[digest].pop(index, None)
        return bool(self._missing[digest])

    def on_blob_complete(self, digest: str) -> None:
        """Drop a blob from what is missing: it is complete and verified."""
        self._drop_requests(digest)
        del self._missing[digest]

    def on_blob_dropped(self, digest: str) -> None:
        """Count all of a blob as missing again: it was dropped."""
        self._drop_requests(digest)
        self._missing[digest] = dict.fromkeys(range(self._sizes[digest]))

    def on_link_lost(self) -> None:
        """Drop the requests, which a lost link will not answer."""
        self._requested.clear()

    def _drop_requests(self, digest: str) -> None:
        self._requested = {(other, i) for other, i in self._requested if other != digest}
