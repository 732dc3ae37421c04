"""A metering plug that publishes its watts on an MQTT topic: Tasmota, Shelly, Zigbee2MQTT and the like.

The MQTT client is another part's, which passes payloads on. The last value holds until the next one comes; after
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
"""The places where the usual plugs put watts, tried in this order if no path is given."""


def watts(payload: bytes, path: str | None) -> float | None:
    """Return the watts in a payload: a number, or JSON with the value at `path` (names and indices between dots)."""
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
    """The last watts that a plug has published. Another thread than that of `read` may call `on_message`."""

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
        self._received = threading.Event()
        self.facts = MeterFacts(
            source=f"mqtt:{topic}",
            covers="all that the plug feeds, the power supply's losses included",
            rate_hz=1.0,
            resolution=1.0,
            gain_error=0.02,
        )

    def on_message(self, payload: bytes) -> None:
        """Take the watts of a message of the topic; one without watts is ignored."""
        power_w = watts(payload, self._path)
        if power_w is not None:
            self._last = (self._clock(), power_w)
            self._received.set()

    def wait_for_watts(self, seconds: float) -> bool:
        """Wait at most `seconds` for the first watts; return whether they have come."""
        return self._received.wait(seconds)

    def read(self) -> tuple[float, ...] | None:
        """Return the last watts; None if they are too old."""
        last = self._last
        if last is None or self._clock() - last[0] > self._stale_s:
            return None
        return (last[1],)

    def close(self) -> None:
        """End the subscription."""
        self.on_close()
