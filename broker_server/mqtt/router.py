"""The router: all subscriptions, as a tree with one level of a filter at each node.

Matching visits nodes level by level and never recurses; the depth is bounded by topics.MAX_LEVELS.
"""

# coverage: every branch

from typing import Generic, TypeVar

S = TypeVar("S")


class _Node(Generic[S]):
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node[S]] = {}
        self.subscribers: dict[S, int] = {}


class Router(Generic[S]):
    """Subscriptions of subscribers S, each with a QoS. Filters must be valid (topics.is_filter)."""

    def __init__(self) -> None:
        self._root: _Node[S] = _Node()
        self._filters: dict[S, set[str]] = {}

    def filters(self, subscriber: S) -> frozenset[str]:
        """Return a subscriber's filters."""
        return frozenset(self._filters.get(subscriber, ()))

    def subscribe(self, subscriber: S, topic_filter: str, qos: int) -> None:
        """Add a subscription, or change its QoS."""
        node = self._root
        for level in topic_filter.split("/"):
            node = node.children.setdefault(level, _Node())
        node.subscribers[subscriber] = qos
        self._filters.setdefault(subscriber, set()).add(topic_filter)

    def unsubscribe(self, subscriber: S, topic_filter: str) -> None:
        """Take a subscription away, if there is one."""
        own = self._filters.get(subscriber, set())
        if topic_filter not in own:
            return
        own.discard(topic_filter)
        if not own:
            del self._filters[subscriber]
        path = [self._root]
        levels = topic_filter.split("/")
        for level in levels:
            path.append(path[-1].children[level])
        del path[-1].subscribers[subscriber]
        for parent, level in zip(reversed(path[:-1]), reversed(levels), strict=True):
            child = parent.children[level]
            if child.children or child.subscribers:
                break
            del parent.children[level]

    def drop(self, subscriber: S) -> None:
        """Take all of a subscriber's subscriptions away."""
        for topic_filter in self.filters(subscriber):
            self.unsubscribe(subscriber, topic_filter)

    def subscribers(self, topic: str) -> dict[S, int]:
        """Return the subscribers that get a message to `topic`, each with the highest QoS of the matching filters."""
        found: dict[S, int] = {}
        nodes = [self._root]
        for at, level in enumerate(topic.split("/")):
            below: list[_Node[S]] = []
            for node in nodes:
                if child := node.children.get(level):
                    below.append(child)
                if at == 0 and topic.startswith("$"):
                    continue  # a leading wildcard does not take in topics of the broker itself
                if child := node.children.get("+"):
                    below.append(child)
                _collect(node.children.get("#"), found)
            nodes = below
        for node in nodes:
            _collect(node, found)
            _collect(node.children.get("#"), found)  # a/# takes in a itself
        return found


def _collect(node: _Node[S] | None, found: dict[S, int]) -> None:
    if node is not None:
        for subscriber, qos in node.subscribers.items():
            found[subscriber] = max(qos, found.get(subscriber, 0))
