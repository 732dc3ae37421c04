"""A metering plug that publishes its watts on an MQTT topic: Tasmota, Shelly, Zigbee2MQTT and the like.

The MQTT client is somebody else's: it hands over payloads. The last value holds until the next one comes; after
`stale_s` without one nothing is measured.
"""

# coverage: every branch

import json
import math
import threading
import time
from collections.abc import Callable

from devices.meters.meter import MeterFacts

MAX_PAYLOAD_BYTES = 1 << 16
MAX_W = 100_000.0
PATHS = ("ENERGY.Power", "apower", "power", "StatusSNS.ENERGY.Power")
"""Where the usual plugs put watts, tried in this order if no path is given."""


def watts(payload: bytes, path: str | None) -> float | None:
    """Watts out of a payload: a plain number, or JSON with the value at `path` (names and indices between dots)."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        return None
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict | list):
        values = (_at(found, choice) for choice in ((path,) if path else PATHS))
        found = next((value for value in values if value is not None), None)
    elif path:
        return None
    return _number(found)


def _at(value: object, path: str) -> object:
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return max(0.0, float(value)) if abs(value) <= MAX_W else None


class PlugMeter:
    """The last watts that a plug has published. `take` may be called from another thread than `read`."""

    def __init__(
        self,
        topic: str,
        path: str | None = None,
        *,
        stale_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._stale_s = stale_s
        self._clock = clock
        self.on_close = on_close
        self._last: tuple[float, float] | None = None
        self._heard = threading.Event()
        self.facts = MeterFacts(
            source=f"mqtt:{topic}",
            covers="all that hangs on the plug, the power supply's losses included",
            rate_hz=1.0,
            resolution=1.0,
            gain_error=0.02,
        )

    def take(self, payload: bytes) -> None:
        """A message of the topic; one without watts is passed over."""
        power_w = watts(payload, self._path)
        if power_w is not None:
            self._last = (self._clock(), power_w)
            self._heard.set()

    def wait(self, seconds: float) -> bool:
        """Whether watts have come within so many seconds."""
        return self._heard.wait(seconds)

    def read(self) -> tuple[float, ...] | None:
        """The last watts; None if they are too old."""
        last = self._last
        if last is None or self._clock() - last[0] > self._stale_s:
            return None
        return (last[1],)

    def close(self) -> None:
        """Stop listening."""
        self.on_close()
