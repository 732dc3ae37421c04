"""The socket by which commands on this machine reach a running server: control.sock in its state folder.

Rules
- Only the owner of the server's process may connect (0600). No port is opened.
- A request is a line, and so is its answer; a connection may ask again and again.
- Requests are questions to the server's loop (questions.py), which never waits for a reader.
- A reader that does not take its answer in STALL_S is cut off, and so is one that asks nothing for IDLE_S. At most
  CONNECTIONS are open.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from broker_server.operator.messages import MAX_REQUEST_BYTES, NotDone, line, read_request
from broker_server.operator.questions import Questions
from edge_runtime.wire.errors import MessageInvalid

NAME = "control.sock"
CONNECTIONS = 32
STALL_S = 10.0
IDLE_S = 600.0
_ENDING_S = 2.0
_POLL_S = 0.005
_ADDRESS_BYTES = 100
"""The longest path that every system takes as a socket's address."""
_SECRET = 0o600


@contextlib.contextmanager
def address(folder: Path) -> Iterator[str]:
    """Give the socket's path in a form that is short enough for the system. Raises OSError."""
    path = os.fspath(folder / NAME)
    if len(os.fsencode(path)) <= _ADDRESS_BYTES:
        yield path
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)


class ControlSocket:
    """Listens in a state folder from `start` until `close`."""

    def __init__(self, folder: Path, questions: Questions, *, stall_s: float = STALL_S) -> None:
        self._folder = folder
        self._questions = questions
        self._stall_s = stall_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def start(self) -> None:
        """Listen. Raises OSError where the folder's file system has no sockets."""
        listener = self._listen()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(listener), self._loop).result()

    def close(self) -> None:
        """Listen no more, once answers have left or a moment has passed."""
        server, self._server = self._server, None
        if server is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(server), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        (self._folder / NAME).unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        (self._folder / NAME).unlink(missing_ok=True)  # the state folder's lock is held: no server listens there
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(OSError):  # not every system has a mode for a socket without a name
                os.fchmod(listener.fileno(), _SECRET)
            with address(self._folder) as path:
                listener.bind(path)
            (self._folder / NAME).chmod(_SECRET)
            listener.listen(CONNECTIONS)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=MAX_REQUEST_BYTES)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # `drain` then waits until the answer has left
        try:
            if len(self._connections) > CONNECTIONS:
                await self._send(writer, line(NotDone(says=f"{CONNECTIONS} commands are connected already: end some")))
                return
            while asked := await asyncio.wait_for(reader.readline(), IDLE_S):
                self._busy.add(task)
                await self._send(writer, await self._asked(asked))
                self._busy.discard(task)
        except (OSError, ValueError, asyncio.TimeoutError):  # gone, a line without end, stalled, or silent
            pass
        except asyncio.CancelledError:  # at the end of the server's life: asyncio would log it as an error of ours
            pass
        finally:
            self._busy.discard(task)
            self._connections.discard(task)
            writer.transport.abort()

    async def _asked(self, asked: bytes) -> bytes:
        try:
            request = read_request(asked)
        except MessageInvalid as exc:
            return line(NotDone(says=str(exc)))
        answer = await asyncio.wrap_future(self._questions.ask(request))
        return line(answer)

    async def _send(self, writer: asyncio.StreamWriter, answer: bytes) -> None:
        writer.write(answer)
        await asyncio.wait_for(writer.drain(), self._stall_s)

    async def _end(self, server: asyncio.Server) -> None:
        # What asyncio has accepted just before its server is closed, it leaves open: so it accepts nothing more first.
        for listener in server.sockets:
            self._loop.remove_reader(listener.fileno())
        until_s = self._loop.time() + _ENDING_S
        while self._busy and self._loop.time() < until_s:  # noqa: ASYNC110 - the end of a life
            await asyncio.sleep(_POLL_S)
        while len(asyncio.all_tasks()) > 1 and self._loop.time() < until_s + _ENDING_S:
            for task in list(self._connections):
                task.cancel()
            await asyncio.sleep(_POLL_S)
        server.close()
