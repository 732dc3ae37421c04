"""Signs of life for systemd, which restarts an agent that hangs.

A service manager that asks for them sets NOTIFY_SOCKET and WATCHDOG_USEC; a datagram `WATCHDOG=1` is a sign of life
(sd_notify(3), sd_watchdog_enabled(3)). Anywhere else nothing is sent.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

_MICROSECONDS = 1e6
_SHARE = 4
"""Signs for each period, so that one that is lost, or late on a busy board, does no harm."""


def heartbeat(
    environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """Return a function to call again and again while the agent is well; it sends no more often than is needed."""
    address = environment.get("NOTIFY_SOCKET", "")
    period_us = environment.get("WATCHDOG_USEC", "")
    if not address or not period_us.isascii() or not period_us.isdigit():
        return lambda: None
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract names
    every_s = int(period_us) / _MICROSECONDS / _SHARE
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    next_s = clock()

    def beat() -> None:
        nonlocal next_s
        now_s = clock()
        if now_s < next_s:
            return
        next_s = now_s + every_s
        with suppress(OSError):  # a manager that does not listen now gets the next one
            channel.sendto(b"WATCHDOG=1", address)

    return beat
