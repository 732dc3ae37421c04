"""Signs of life: for systemd, which restarts an agent that hangs, and for a container's health check.

A service manager that asks for them sets NOTIFY_SOCKET and WATCHDOG_USEC; a datagram `WATCHDOG=1` is a sign of life
(sd_notify(3), sd_watchdog_enabled(3)). MAS_EDGE_ALIVE names a file that is touched. Anywhere else nothing is sent.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

_MICROSECONDS = 1e6
_TOUCH_S = 10.0
_SHARE = 4
"""Signs for each period, so that one that is lost, or late on a busy board, does no harm."""


def heartbeat(
    environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """Return a function to call again and again while the agent is well; it sends no more often than is needed."""
    signs: list[tuple[float, Callable[[], object]]] = []
    address = environment.get("NOTIFY_SOCKET", "")
    period_us = environment.get("WATCHDOG_USEC", "")
    if address and period_us.isascii() and period_us.isdigit():
        if address.startswith("@"):
            address = "\0" + address[1:]  # Linux's abstract names
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        signs.append((int(period_us) / _MICROSECONDS / _SHARE, lambda: channel.sendto(b"WATCHDOG=1", address)))
    if file := environment.get("MAS_EDGE_ALIVE", ""):
        signs.append((_TOUCH_S, Path(file).touch))
    due_s = [clock()] * len(signs)

    def beat() -> None:
        now_s = clock()
        for number, (every_s, give) in enumerate(signs):
            if now_s >= due_s[number]:
                due_s[number] = now_s + every_s
                with suppress(OSError):  # whoever does not listen now gets the next one
                    give()

    return beat
