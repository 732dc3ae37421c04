"""A thread that calls something at an even rate, and never in a burst to catch up."""

import threading
import time
from collections.abc import Callable

SHORT_S = 0.1
"""The longest period for which the thread sleeps: half the cost of waiting for an event, but `stop` waits for it."""


class Sampler:
    """Calls `tick` `rate_hz` times a second until it is stopped. A tick that is late moves the later ones."""

    def __init__(self, tick: Callable[[], None], rate_hz: float) -> None:
        self._tick = tick
        self._period_s = 1 / rate_hz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for a tick under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _wait(self, seconds: float) -> None:
        if self._period_s <= SHORT_S:
            time.sleep(seconds)
        else:
            self._stop.wait(seconds)

    def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + self._period_s, time.monotonic())
            self._wait(max(0.0, due_s - time.monotonic()))
            if self._stop.is_set():
                return
            self._tick()
