"""Admission of sockets: which of those that were accepted may begin, counted before any handshake.

Rules
- A socket waits until it may begin: its TLS handshake, then its CONNECT. At most `pending` have begun and not been
  authenticated, at most `pending_of_address` of these from one address. Addresses have their turn, and the sockets of
  one are in the order in which they came: so a storm of reconnects is answered as fast as this machine can, and
  everybody is answered.
- While others wait, one that has begun and been silent for `patience_s`, less where many wait, is closed for them; an
  honest client is authenticated within a few round trips.
- At most `sockets` in all. For one more, the newest of the address with the most that wait is closed, which may be the
  new one; where none waits, the oldest that has begun; and where all are authenticated, the new one.
"""

# coverage: every branch

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")
LEAST_PATIENCE_S = 0.5


class Admission(Generic[T]):
    """The open sockets T, which are compared by identity or hash. `now_s` is any clock that only goes forward."""

    def __init__(self, *, sockets: int, pending: int, pending_of_address: int, patience_s: float) -> None:
        self._sockets = sockets
        self._pending_cap = pending
        self._of_address_cap = pending_of_address
        self._patience_s = patience_s
        self._open: set[T] = set()
        self._waiting: dict[str, deque[T]] = {}  # the address whose turn it is comes first
        self._pending: dict[T, tuple[str, float]] = {}  # with the time at which it began, oldest first

    def __len__(self) -> int:
        return len(self._open)

    def open(self, socket: T, address: str) -> list[T]:
        """Let a new socket wait for its turn; return those to be closed for it, which may be itself."""
        self._open.add(socket)
        self._waiting.setdefault(address, deque()).append(socket)
        if len(self._open) <= self._sockets:
            return []
        most = max(self._waiting, key=lambda name: len(self._waiting[name]))
        victim = self._waiting[most][-1]
        if len(self._waiting) == 1 and len(self._waiting[address]) == 1 and self._pending:
            victim = next(iter(self._pending))
        self.closed(victim)
        return [victim]

    def next(self, now_s: float) -> T | None:
        """Return the next socket that may begin now; None if none may."""
        begun = Counter(address for address, _ in self._pending.values())
        if len(self._pending) >= self._pending_cap:
            return None
        address = next((each for each in self._waiting if begun[each] < self._of_address_cap), None)
        if address is None:
            return None
        waiting = self._waiting.pop(address)
        socket = waiting.popleft()
        if waiting:
            self._waiting[address] = waiting  # behind the others
        self._pending[socket] = (address, now_s)
        return socket

    def overdue(self, now_s: float) -> list[T]:
        """Return those that are to be closed, because they are silent and others wait for their places."""
        is_full = len(self._pending) >= self._pending_cap
        waiting = {address: len(sockets) for address, sockets in self._waiting.items()}
        silent = []
        for socket, (address, since_s) in self._pending.items():
            after_it = sum(waiting.values()) if is_full else waiting.get(address, 0)
            if after_it and now_s - since_s >= self._patience_of(after_it):
                silent.append(socket)
        for socket in silent:
            self.closed(socket)
        return silent

    def _patience_of(self, waiting: int) -> float:
        """Return how long one may be silent while so many wait: a flood of silent ones is over the sooner."""
        return max(LEAST_PATIENCE_S, self._patience_s * min(1.0, self._of_address_cap / waiting))

    def authenticated(self, socket: T) -> bool:
        """Note that a socket's client has been authenticated; return whether that is news."""
        return self._pending.pop(socket, None) is not None

    def closed(self, socket: T) -> None:
        """Note that a socket is closed, or about to be."""
        self._open.discard(socket)
        self._pending.pop(socket, None)
        for address, waiting in self._waiting.items():
            if socket in waiting:
                waiting.remove(socket)
                if not waiting:
                    del self._waiting[address]
                return
