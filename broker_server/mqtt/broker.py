"""The shell around the hub: sockets, timers and a thread. All decisions are the hub's.

A socket's own buffer takes at most `write_bytes` and one packet of messages: the hub writes no more until it has
drained. Answers (PINGRESP, PUBACK, …) are small and still written; a client that asks for them and never reads is cut
off when they have filled as much again.

Sockets are counted from the moment they are accepted (admission.py), before TLS, and stay below the process's limit of
open files: whoever opens more is closed, and the server goes on opening its own.
"""

import asyncio
import contextlib
import errno
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

from broker_server.mqtt.admission import Admission
from broker_server.mqtt.auth import Authorizer
from broker_server.mqtt.codec import MAX_CONTROL_BYTES, Decoder, PacketMalformed
from broker_server.mqtt.handshake_fault import handshake_fault
from broker_server.mqtt.hub import Hub
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.local import LocalLink, local_link
from broker_server.mqtt.stats import Stats
from broker_server.mqtt.tls import TlsUnusable, certified, server_context

_TICK_S = 0.5
_LAST_PORT = 65535
_POLITE_S = 5.0  # how long a closed connection may take to read its last packet
_TURN_PACKETS = 256  # after this many of one client's packets the others have their turn
_JOIN_BYTES = 16 << 10  # up to this size header and payload are written as one
_BACKLOG = 1024  # connections that the system holds until they are accepted
_OWN_FILES = 256  # what the server itself opens at most: blobs, its journal, processes
_ENDING_S = 0.01
_PAUSE_S = 0.1  # before the next connection is accepted, where the system has no room for one


class BrokerNotStarted(RuntimeError):
    """The broker cannot listen: no free port, no such host, an unusable certificate."""


class _Accepted:
    """A socket that was accepted, from before its handshake until it is closed."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.address = address
        self.has_begun = False
        """Whether it has an owner, who closes it."""

    def end(self) -> None:
        """End the connection, whatever state it is in: its owner, if it has one, notices and closes the socket."""
        if not self.has_begun:
            self.sock.close()
            return
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _Socket(asyncio.Protocol):
    """One accepted connection: a Peer of the hub."""

    def __init__(
        self,
        hub: Hub,
        loop: asyncio.AbstractEventLoop,
        sockets: set["_Socket"],
        accepted: _Accepted,
        admission: Admission[_Accepted],
        admit: Callable[[], None],
    ) -> None:
        self._hub = hub
        self._admit = admit
        self._accepted = accepted
        self._admission = admission
        self._loop = loop
        self._sockets = sockets
        # Until the client has been authenticated, nothing larger than a control packet is read.
        self._decoder = Decoder(MAX_CONTROL_BYTES)
        self._is_held = False
        self._is_behind = False
        self._is_closed = False
        self._is_not_reading = False
        self._unread_cap_bytes = 2 * (hub.limits.write_bytes + hub.limits.packet_bytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._hub.limits.write_bytes)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # the kernel too keeps no more for a client that does not read
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._hub.limits.write_bytes)
        self._sockets.add(self)
        shown = certified(transport.get_extra_info("peercert"))
        self._client = self._hub.on_opened(self, self._loop.time(), shown)

    def data_received(self, data: bytes) -> None:
        self._hub.stats.bytes_in += len(data)
        if not self._is_closed:
            self._decoder.push(data)
            self._drain()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._is_closed = True
        self._sockets.discard(self)
        self._admission.closed(self._accepted)
        self._hub.on_lost(self._client, self._loop.time())
        self._admit()

    def pause_writing(self) -> None:
        self._hub.on_writable(self._client, False)

    def resume_writing(self) -> None:
        self._hub.on_writable(self._client, True)

    def send(self, header: bytes, payload: bytes = b"") -> None:
        if self._is_closed or self._transport.is_closing():  # asyncio logs each write to a client that has vanished
            return
        self._hub.stats.bytes_out += len(header) + len(payload)
        if len(payload) <= _JOIN_BYTES:
            self._transport.write(header + payload)
        else:
            self._transport.write(header)
            self._transport.write(payload)
        if not self._is_not_reading and self._transport.get_write_buffer_size() > self._unread_cap_bytes:
            self._is_not_reading = True
            self._loop.call_soon(lambda: self._hub.on_not_reading(self._client, self._loop.time()))

    def hold(self, is_held: bool) -> None:
        self._is_held = is_held
        if not is_held and not self._is_closed:
            # It was silent because it was not read.
            self._client.connection.touch(self._loop.time())
            self._loop.call_soon(self._drain)
        self._read_or_not()

    def close(self, *, is_polite: bool) -> None:
        self._is_closed = True
        if is_polite:
            self._transport.close()
            self._loop.call_later(_POLITE_S, self._transport.abort)
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _drain(self) -> None:
        """Handle what has been read, for one turn."""
        is_behind = False
        try:
            for _ in range(_TURN_PACKETS):
                if self._is_held or self._is_closed or (packet := self._decoder.pull()) is None:
                    break
                self._hub.on_packet(self._client, packet, self._loop.time())
                if self._client.is_live:
                    if self._admission.authenticated(self._accepted):
                        self._admit()
                    self._decoder.max_packet_bytes = self._hub.limits.packet_bytes
            else:
                is_behind = True
                self._loop.call_soon(self._drain)
        except PacketMalformed as exc:
            self._hub.on_malformed(self._client, exc, self._loop.time())
        if is_behind != self._is_behind:
            self._is_behind = is_behind
            self._read_or_not()

    def _read_or_not(self) -> None:
        if self._is_closed:
            return
        if self._is_held or self._is_behind:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class EmbeddedBroker:
    """An MQTT 3.1.1 broker on a thread of its own, for one machine.

    With `certificate_file` and `key_file` (PEM) it speaks TLS only, and with `client_ca_file` to those alone who have a
    certificate of that CA; `on_handshake_failed` hears of clients with which that failed, with their address, where it
    is known why. `start` may be called once. Raises BrokerNotStarted for files that cannot be used.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        *,
        limits: Limits | None = None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
        client_ca_file: Path | None = None,
        on_handshake_failed: Callable[[str, str], None] = lambda _address, _why: None,
    ) -> None:
        self.stats = Stats()
        self._on_handshake_failed = on_handshake_failed
        self._hub = Hub(authorizer, limits or Limits(), self.stats)
        try:
            self._tls = None if certificate_file is None else server_context(certificate_file, key_file, client_ca_file)
        except TlsUnusable as exc:
            raise BrokerNotStarted(str(exc)) from exc
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        given = self._hub.limits
        self._room = _room_for(given.clients + given.pending)
        self._admission: Admission[_Accepted] = Admission(
            sockets=self._room,
            pending=given.pending,
            pending_of_address=given.pending_of_address,
            patience_s=given.patience_s,
        )
        self._sockets: set[_Socket] = set()
        self._links_stopped: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    def renew(self, certificate_file: Path, key_file: Path) -> None:
        """Show connections from now on another certificate. Raises TlsUnusable for files that cannot be used."""
        assert self._tls is not None
        server_context(certificate_file, key_file, None)  # what cannot be used does not replace what can
        self._tls.load_cert_chain(certificate_file, key_file)

    def start(self, host: str = "127.0.0.1", port: int = 1883, *, search: int = 0) -> int:
        """Listen on `port`, or if that is in use on the first free one of the `search` ports after it.

        Returns the port. With port 0 any free one is taken. Raises BrokerNotStarted.
        """
        listener = _listen(host, port, search)
        loop = asyncio.new_event_loop()
        self._loop = loop
        self._thread = threading.Thread(target=self._run, args=(loop,), name="mqtt-broker", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(listener), loop).result()
        return int(listener.getsockname()[1])

    def stop(self, *, linger_s: float = 2.0) -> None:
        """Close every connection, after clients had up to `linger_s` seconds to get what is queued for them."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(linger_s), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    def link(self, *, inbox_bytes: int = 64 << 20, outbox_bytes: int = 32 << 20) -> LocalLink:
        """Return the server's own link to the running broker, bounded in bytes in both directions."""
        if self._loop is None:
            raise BrokerNotStarted("the broker has not been started, or has stopped")
        link, stopped = local_link(self._hub, self._loop, inbox_bytes=inbox_bytes, outbox_bytes=outbox_bytes)
        self._links_stopped.append(stopped)
        return link

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._accepting = loop.create_task(self._accept(listener))
        loop.call_later(_TICK_S, self._tick, loop)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled. Nothing that fails with one of them ends this."""
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                while len(self._handshakes) + len(self._sockets) > self._room:  # noqa: ASYNC110 - some are just ending
                    await asyncio.sleep(_ENDING_S)
                try:
                    sock, address = await loop.sock_accept(listener)
                except OSError:  # no room for another open file, or the client has gone already
                    self.stats.refused["accept"] += 1
                    await asyncio.sleep(_PAUSE_S)
                    continue
                for other in self._admission.open(_Accepted(sock, str(address[0])), str(address[0])):
                    self.stats.closed["sockets-full"] += 1
                    other.end()
                self._admit()

    def _admit(self) -> None:
        """Let those begin whose turn it is, after those were closed that are silent while others wait."""
        loop = asyncio.get_running_loop()
        for silent in self._admission.overdue(loop.time()):
            self.stats.closed["pending-full"] += 1
            silent.end()
        while self._loop is not None and (accepted := self._admission.next(loop.time())) is not None:
            accepted.has_begun = True
            task = loop.create_task(self._connect(accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _connect(self, accepted: _Accepted) -> None:
        """Make a connection of an accepted socket, after its handshake."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: _Socket(self._hub, loop, self._sockets, accepted, self._admission, self._admit),
                accepted.sock,
                ssl=self._tls,
                ssl_handshake_timeout=self._hub.limits.connect_timeout_s if self._tls else None,
            )
        except OSError as exc:  # TLS errors are such, and timeouts
            self.stats.closed["handshake"] += 1
            if fault := handshake_fault(exc):
                self._on_handshake_failed(accepted.address, fault)
            self._admission.closed(accepted)
            accepted.sock.close()
            self._admit()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_TICK_S, self._tick, loop)
        self._hub.tick(loop.time())
        self._admit()

    async def _shut_down(self, linger_s: float) -> None:
        loop = asyncio.get_running_loop()
        for task in (self._accepting, *self._handshakes):
            if task is not None:
                task.cancel()
        await _until(lambda: self._hub.is_idle, linger_s)
        self._hub.close(loop.time())
        await _until(lambda: not self._sockets, linger_s)
        for peer in list(self._sockets):
            peer.abort()
        for stopped in self._links_stopped:
            stopped()
        await asyncio.sleep(0)  # lets the aborted transports say so


def _room_for(wanted: int) -> int:
    """Return how many sockets may be open: as many as are wanted, if the process may open so many files beside its own.

    The process's limit is raised as far as it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - min(_OWN_FILES, soft // 2)))


async def _until(is_so: Callable[[], bool], limit_s: float) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + limit_s
    while not is_so() and loop.time() < until_s:  # noqa: ASYNC110 - two conditions at the end of a life
        await asyncio.sleep(0.01)


def _listen(host: str, port: int, search: int) -> socket.socket:
    if not 0 <= port <= _LAST_PORT:
        raise BrokerNotStarted(f"the broker cannot listen on port {port}: ports go from 0 to {_LAST_PORT}")
    last = min(port + search, _LAST_PORT) if port else 0
    for candidate in range(port, last + 1):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as exc:
            raise BrokerNotStarted(f"the broker cannot listen on {host!r}: {exc}") from exc
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as exc:
            with contextlib.closing(listener):
                if exc.errno != errno.EADDRINUSE:
                    raise BrokerNotStarted(f"the broker cannot listen on {host}:{candidate}: {exc}") from exc
        else:
            listener.setblocking(False)
            return listener
    ports = f"port {port} is" if last == port else f"ports {port} to {last} are"
    raise BrokerNotStarted(f"the broker cannot listen on {host}: {ports} in use; choose another port")
