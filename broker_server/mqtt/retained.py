"""Retained messages: the last one of each topic, bounded in number and bytes."""

# coverage: every branch

from collections.abc import Iterator
from dataclasses import replace

from broker_server.mqtt.outbox import QueuedMessage
from broker_server.mqtt.topics import matches


class Retained:
    """A store of retained messages."""

    def __init__(self, *, cap: int, cap_bytes: int) -> None:
        self.held_bytes = 0
        self._cap = cap
        self._cap_bytes = cap_bytes
        self._messages: dict[str, QueuedMessage] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: QueuedMessage) -> bool:
        """Keep a message instead of its topic's last one; an empty payload clears. Return False if there is no room.

        Without room the last one is forgotten too: a stale answer is worse than none.
        """
        last = self._messages.pop(message.topic, None)
        if last is not None:
            self.held_bytes -= last.cost_bytes
        if not message.payload:
            return True
        if len(self._messages) >= self._cap or self.held_bytes + message.cost_bytes > self._cap_bytes:
            return False
        self._messages[message.topic] = message
        self.held_bytes += message.cost_bytes
        return True

    def matching(self, topic_filter: str) -> Iterator[QueuedMessage]:
        """Yield the messages that a new subscription to `topic_filter` gets, marked retained."""
        fixed = topic_filter.split("+", maxsplit=1)[0].split("#", maxsplit=1)[0]
        if fixed == topic_filter:
            candidates = [self._messages[fixed]] if fixed in self._messages else []
        else:
            # a/# takes in a itself, so the prefix is compared without its last slash.
            prefix = fixed.removesuffix("/")
            candidates = [message for topic, message in self._messages.items() if topic.startswith(prefix)]
        for message in candidates:
            if matches(topic_filter, message.topic):
                yield replace(message, retain=True)
