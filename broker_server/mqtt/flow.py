"""Back-pressure: publishers wait for the subscribers that are full.

A publisher that gave a QoS 1 message to a full subscriber is held back (its socket is not read) until every subscriber
that it waits for has room again, or has been cut off for holding others back too long.
"""

# coverage: every branch

from typing import Generic, Protocol, TypeVar


class Publisher(Protocol):
    """A party that can be held back. A Protocol, for sockets and the server's own link alike."""

    def hold(self, is_held: bool) -> None:
        """Stop publishing, or go on."""
        ...


P = TypeVar("P", bound=Publisher)
S = TypeVar("S")


class Flow(Generic[P, S]):
    """Publishers P that wait for subscribers S. Both are compared by identity or hash."""

    def __init__(self) -> None:
        self._waiting: dict[S, tuple[float, dict[P, None]]] = {}
        self._awaited: dict[P, dict[S, None]] = {}

    def is_held(self, publisher: P) -> bool:
        """Return whether a publisher waits."""
        return publisher in self._awaited

    def is_awaited(self, subscriber: S) -> bool:
        """Return whether anyone waits for a subscriber."""
        return subscriber in self._waiting

    def block(self, publisher: P, subscriber: S, now_s: float) -> None:
        """Let a publisher wait for a subscriber."""
        self._waiting.setdefault(subscriber, (now_s, {}))[1][publisher] = None
        is_new = publisher not in self._awaited
        self._awaited.setdefault(publisher, {})[subscriber] = None
        if is_new:
            publisher.hold(True)

    def relieve(self, subscriber: S) -> None:
        """Let publishers go on that waited for this subscriber alone, because it has room again."""
        _, publishers = self._waiting.pop(subscriber, (0.0, {}))
        for publisher in publishers:
            awaited = self._awaited[publisher]
            del awaited[subscriber]
            if not awaited:
                del self._awaited[publisher]
                publisher.hold(False)

    def drop(self, publisher: P) -> None:
        """Drop a publisher that is gone."""
        for subscriber in self._awaited.pop(publisher, {}):
            del self._waiting[subscriber][1][publisher]

    def stalled(self, now_s: float, stall_s: float) -> list[S]:
        """Return the subscribers that have held a publisher back for longer than `stall_s` seconds."""
        return [
            subscriber
            for subscriber, (since_s, publishers) in self._waiting.items()
            if publishers and now_s - since_s > stall_s
        ]
