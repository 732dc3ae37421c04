"""Power meters: what a board, or something between it and the wall, can say about its energy."""

# coverage: every branch

from devices.meters.discovery import Found, discover, open_source
from devices.meters.meter import Meter

__all__ = ["Found", "Meter", "discover", "open_source"]
