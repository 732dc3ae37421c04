"""The upload speed of a device's link, measured on the updates that it has sent, without I/O or clock.

The time runs from the first run that the server requested until the server has acknowledged the update, so it
includes all waiting. An upload that took less than SHORT_S was mostly waiting: it can show that the link
is faster than was measured before, never that it is slow. A connection that was lost in between gives no measurement.
"""

# coverage: every branch

from edge_runtime.wire.blob import Blob, ChunkRun

SHORT_S = 1.0
NEWEST = 0.5
"""The weight of the newest measurement in the mean."""


class Uplink:
    """The upload speed of one link. `now_s` is any clock that only goes forward."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        """Go on from the speed that an earlier process measured."""
        self.bytes_per_s = bytes_per_s
        """None while nothing was measured."""
        self._blob: Blob | None = None
        self._sent_bytes = 0
        self._since_s = 0.0

    def on_runs_requested(self, blob: Blob, runs: tuple[ChunkRun, ...], now_s: float) -> None:
        """Count the runs of an update that the server requested."""
        if self._blob != blob:
            self._blob, self._since_s, self._sent_bytes = blob, now_s, 0
        self._sent_bytes += sum(blob.run_bytes(run) for run in runs)

    def on_upload_lost(self) -> None:
        """Stop measuring: the connection was lost, or the update is no longer wanted."""
        self._blob = None

    def on_acknowledged(self, now_s: float) -> bool:
        """Measure an upload that the server has acknowledged; return whether that has changed `bytes_per_s`."""
        if self._blob is None or now_s <= self._since_s:
            return False
        took_s = now_s - self._since_s
        speed = min(self._sent_bytes, self._blob.size_bytes) / took_s
        before, self._blob = self.bytes_per_s, None
        if took_s >= SHORT_S:
            self.bytes_per_s = speed if before is None else before + NEWEST * (speed - before)
        elif before is not None:
            self.bytes_per_s = max(before, speed)
        return self.bytes_per_s != before
