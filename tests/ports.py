"""Ports that nobody listens on."""

import contextlib
import random
import socket


def free_port():
    """Return one below those that the system gives to clients, which may be taken again before it is used."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
