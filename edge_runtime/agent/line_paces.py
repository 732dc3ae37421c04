"""What is known of a device's line: its pace both ways, and the upload speed by which a plan's update is compressed.

It is kept in the state folder, so that the next blob, round or process begins with it.
"""

from edge_runtime.agent.state import LinkSpeeds, State
from edge_runtime.agent.uplink import Uplink
from edge_runtime.wire.pace import Pace, halved


class LinePaces:
    """The paces of one line. At most `chunk_bytes` of a file go in one message."""

    def __init__(self, state: State, chunk_bytes: int) -> None:
        self._state = state
        self._saved = saved = state.speeds()
        self.uplink = Uplink(saved.bytes_per_s)
        self.up, self.down = Pace(saved.bytes_per_s), Pace(saved.down_bytes_per_s)
        self._set_most(chunk_bytes)

    def halve(self, too_large_bytes: int) -> int:
        """Send and ask for shorter runs from now on, for so many bytes were too many; return how many are the most."""
        return self._set_most(halved(too_large_bytes))

    def save(self) -> None:
        """Save the speeds for later processes, where they have changed much. Raises StateUnusable."""
        speeds = LinkSpeeds(bytes_per_s=self.uplink.bytes_per_s, down_bytes_per_s=self.down.bytes_per_s)
        if speeds.differ_from(self._saved):
            self._saved = speeds
            self._state.save_speeds(speeds)

    def _set_most(self, most_bytes: int) -> int:
        self.up.most_bytes = self.down.most_bytes = most_bytes
        return most_bytes
