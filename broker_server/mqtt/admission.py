"""Admission of sockets: how many may be open, counted from the moment they are accepted, before any handshake.

Rules
- At most `sockets` in all, at most `pending` that have not been authenticated, and at most `pending_of_address` of
  these from one address. The oldest of those that are too many is closed: an honest client is authenticated within a
  few round trips, and one that is silent grows old.
- Where all that are open have been authenticated, it is the new one that is closed.
"""

# coverage: every branch

from typing import Generic, TypeVar

T = TypeVar("T")


class Admission(Generic[T]):
    """The open sockets T, which are compared by identity or hash."""

    def __init__(self, *, sockets: int, pending: int, pending_of_address: int) -> None:
        self._sockets = sockets
        self._pending_cap = pending
        self._of_address_cap = pending_of_address
        self._open: set[T] = set()
        self._pending: dict[T, str] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._open)

    def open(self, socket: T, address: str) -> list[T]:
        """Take a new socket in and return those to be closed for it, which may be itself."""
        closed = []
        same = [each for each, of in self._pending.items() if of == address]
        if len(same) >= self._of_address_cap:
            closed.append(same[0])
        elif self._pending and (len(self._pending) >= self._pending_cap or len(self._open) >= self._sockets):
            closed.append(next(iter(self._pending)))
        for each in closed:
            self.closed(each)
        if len(self._open) >= self._sockets:
            return [*closed, socket]
        self._open.add(socket)
        self._pending[socket] = address
        return closed

    def authenticated(self, socket: T) -> None:
        """Note that a socket's client has been authenticated."""
        self._pending.pop(socket, None)

    def closed(self, socket: T) -> None:
        """Note that a socket is closed, or about to be."""
        self._open.discard(socket)
        self._pending.pop(socket, None)
