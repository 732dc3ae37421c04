"""Refusals as they come: logins and handshakes from the broker's thread, and what its counters say, told on the loop's.

What the broker refuses on its own, such as one client more than it takes, has no name: its counters are read.
"""

import logging
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue

from broker_server.mqtt.stats import Stats
from broker_server.server.refusals import RefusalLine, Refusals

_LOG = logging.getLogger("broker_server")
COUNTED = {
    "refused": {
        "client-id": ("clients", "they gave no client id"),
        "clients-full": ("devices", "there are as many as broker.clients allows"),
        "publish": ("clients", "they published to topics that are not their own"),
        "subscribe": ("subscriptions", "they are to topics that are not the client's own"),
        "subscriptions-full": ("subscriptions", "the client has as many as it may"),
        "will": ("clients", "their last will is for a topic that is not their own"),
        "accept": ("connections", "this process may open no more files: raise its limit (ulimit -n)"),
    },
    "closed": {
        "pending-full": ("connections", "too many at once have not said who they are"),
        "sockets-full": ("connections", "too many at once have not said who they are, or the broker is full"),
        "slow": ("clients", "they do not read what is sent to them"),
        "revoked": ("clients", "they were revoked or enrolled again while they were connected"),
    },
}
"""Of the broker's counters, by reason: who is refused, and why."""
MAX_WAITING = 10_000


class RefusalWatch:
    """Takes refusals from any thread; `tell` says what is worth a line, on the loop's thread."""

    def __init__(self, say: Callable[[RefusalLine], None] = lambda line: _LOG.warning("%s", line.text)) -> None:
        self.refusals = Refusals()
        self.say = say
        """What says a line; may be set once there is a better place."""
        self.stats: Stats | None = None
        """The counters of the embedded broker, where there is one."""
        self._seen: Counter[tuple[str, str]] = Counter()
        self._waiting: SimpleQueue[tuple[str, str | None]] = SimpleQueue()

    def add(self, who: str, why: str | None) -> None:
        """Take an attempt of somebody: why it was refused, or None where it was let in."""
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put((who, why))

    def tell(self, now_s: float) -> None:
        """Say what is to be said now."""
        try:
            while True:
                who, why = self._waiting.get_nowait()
                if why is None:
                    self.refusals.end(who)
                else:
                    self.refusals.add(who, why, now_s)
        except Empty:
            pass
        if self.stats is not None:
            self._count(self.stats, now_s)
        for line in self.refusals.lines(now_s):
            self.say(line)

    def _count(self, stats: Stats, now_s: float) -> None:
        for kind, reasons in COUNTED.items():
            counts: Counter[str] = getattr(stats, kind)
            for reason, (who, why) in reasons.items():
                if more := counts[reason] - self._seen[kind, reason]:
                    self._seen[kind, reason] += more
                    self.refusals.add(who, why, now_s, more)
