"""A metering plug that publishes its watts on an MQTT topic: Tasmota, Shelly, Zigbee2MQTT and the like.

The MQTT client is another part's, which passes payloads on. The last value holds until the next one comes; after half
as long again as the plug's longest time between two messages, nothing is measured. Of a plug that publishes every few
minutes, or on a change alone, that time must be stated (`every`): what it does not see in between is then in the error.
"""

# coverage: every branch

import json
import re
import threading
import time
from collections.abc import Callable

from devices.meters.meter import MeterFacts

MAX_PAYLOAD_BYTES = 1 << 16
MAX_W = 100_000.0
PATHS = (
    "ENERGY.Power", "StatusSNS.ENERGY.Power", "apower", "total_act_power", "power", "power.value", "value",
)  # fmt: skip
"""The places where the usual plugs put watts, tried in this order if no path is given: Tasmota, Shelly's switches and
three-phase meters, Zigbee2MQTT, Homey, zwave-js."""
_CHANNEL = re.compile(r"power_(l?\d|left|right)")
_CHANNEL_POWERS = ("apower", "act_power", "total_act_power")
_TEXT = re.compile(r"\s*([+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?)\s*(mW|W|kW)?\s*\Z")
_UNITS = {"": 1.0, "mW": 1e-3, "W": 1.0, "kW": 1e3}
HELD_ERROR = 0.25
"""Of a value that is held for minutes: a board's power changes by about so much between work and rest."""
RARE_S = 20.0
"""A plug that publishes more rarely than this leaves what happened in between to be assumed."""


def watts(payload: bytes, path: str | None) -> float | None:
    """Return the watts in a payload: a number, a text with a unit, or JSON with the value at `path`.

    A path has names and indices between dots. Several channels, in a list or by name, are added up. None for anything
    else, and for a power below zero: the plug is the wrong way round.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        return None
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        found = payload.decode("utf-8", "replace")
    if isinstance(found, dict | list):
        if path is None:
            return _usual(found)
        return _number(_at(found, path))
    return None if path else _number(found)


def _usual(found: object) -> float | None:
    """Return the watts at the first of the usual places that has some, or those of several channels together."""
    for path in PATHS:
        if (value := _number(_at(found, path))) is not None:
            return value
    if not isinstance(found, dict):
        return None
    channels = [value for name, value in found.items() if _CHANNEL.fullmatch(name)]
    notified = found.get("params")  # Shelly's NotifyStatus: a status for each part that has changed
    parts = notified.values() if isinstance(notified, dict) else ()
    channels += [part[name] for part in parts if isinstance(part, dict) for name in _CHANNEL_POWERS if name in part]
    return _number(channels) if channels else None


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
    if isinstance(value, list):
        numbers = [_number(each) for each in value]
        known = [each for each in numbers if each is not None]
        return sum(known) if known and len(known) == len(numbers) else None
    if isinstance(value, str):
        match = _TEXT.match(value)
        value = None if match is None else float(match[1].replace(",", ".")) * _UNITS[match[2] or ""]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0.0 <= value <= MAX_W else None


class PlugMeter:
    """The last watts that a plug has published. Another thread than that of `read` may call `on_message`."""

    def __init__(
        self,
        topic: str,
        path: str | None = None,
        *,
        every_s: float = RARE_S,
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._stale_s = 1.5 * every_s
        self._clock = clock
        self.on_close = on_close
        self._last: tuple[float, float] | None = None
        self._received = threading.Event()
        self.facts = MeterFacts(
            source=f"mqtt:{topic}",
            covers="all that the plug feeds, the power supply's losses included"
            + (f"; each value held for up to {self._stale_s:.0f} s" if every_s > RARE_S else ""),
            rate_hz=1.0,
            resolution=1.0,
            gain_error=0.02 if every_s <= RARE_S else HELD_ERROR,
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
