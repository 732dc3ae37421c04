"""Power meters: sensors of the board, and plugs between it and the wall."""

# coverage: every branch

from devices.meters.discovery import Found, discover, open_source
from devices.meters.meter import Meter

__all__ = ["Found", "Meter", "discover", "open_source"]
