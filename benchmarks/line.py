"""A TCP proxy that is a slow or a bad line: so many bytes a second each way, connections that are reset.

It buffers what passes in a tenth of a second, so that what a sender has written stays with the sender.
"""

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from dataclasses import dataclass, field

BUFFER_S = 0.1
BUFFERS_BYTES = (4096, 1 << 18)
LATE_S = 0.05
"""A machine that is busy wakes the line late by so much: it catches up."""
TICK_S = 0.25


@dataclass
class Line:
    """A line to a port of this machine, `port` being this end's; a context manager. Each connection has the rate."""

    target: int
    bytes_per_s: float = math.inf
    resets_per_s: float = 0.0
    seed: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    connections: int = 0
    resets: int = 0
    port: int = field(default=0, init=False)

    def __enter__(self) -> "Line":  # noqa: PYI034
        self._listener = self._socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._random = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join()

    def _run(self) -> None:
        self._serving = self._loop.create_task(self._serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self) -> None:
        open_now: set[asyncio.Task[None]] = set()  # a loop keeps no task alive
        with self._listener:
            while True:
                near, _ = await self._loop.sock_accept(self._listener)
                self.connections += 1
                task = self._loop.create_task(self._connection(near))
                open_now.add(task)
                task.add_done_callback(open_now.discard)

    async def _connection(self, near: socket.socket) -> None:
        far = self._socket()
        with near, far:
            for each in (near, far):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                await self._loop.sock_connect(far, ("127.0.0.1", self.target))
                pumps = [
                    self._loop.create_task(self._pump(near, far, "up_bytes")),
                    self._loop.create_task(self._pump(far, near, "down_bytes")),
                    self._loop.create_task(self._fail(near, far)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()

    async def _pump(self, source: socket.socket, sink: socket.socket, counted: str) -> None:
        free_s = 0.0
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(source, self._buffer_bytes // 4):
                setattr(self, counted, getattr(self, counted) + len(data))
                free_s = max(free_s, self._loop.time() - LATE_S) + len(data) / self.bytes_per_s
                await asyncio.sleep(max(0.0, free_s - self._loop.time()))
                await self._loop.sock_sendall(sink, data)

    async def _fail(self, near: socket.socket, far: socket.socket) -> None:
        """Reset the connection when its time has come."""
        while True:
            await asyncio.sleep(TICK_S)
            if self._random.random() < self.resets_per_s * TICK_S:
                self.resets += 1
                for each in (near, far):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return

    @property
    def _buffer_bytes(self) -> int:
        least, most = BUFFERS_BYTES
        return int(min(most, max(least, BUFFER_S * self.bytes_per_s)))

    def _socket(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
        return made
