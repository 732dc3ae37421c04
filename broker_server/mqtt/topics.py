"""Topic names and topic filters (MQTT 3.1.1, section 4.7), with bounds on length and depth.

The bounds are this broker's own: they keep a hostile topic from making the subscription tree deep or wide.
"""

# coverage: every branch

MAX_TOPIC_BYTES = 1024
MAX_LEVELS = 32


def is_topic(topic: str) -> bool:
    """Return whether a message may be published to `topic`."""
    return _is_bounded(topic) and "+" not in topic and "#" not in topic


def is_filter(topic_filter: str) -> bool:
    """Return whether `topic_filter` is valid: each wildcard fills a level, and # is the last."""
    if not _is_bounded(topic_filter):
        return False
    levels = topic_filter.split("/")
    return all(
        level == "+" or ("+" not in level and ("#" not in level or (level == "#" and at == len(levels) - 1)))
        for at, level in enumerate(levels)
    )


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a filter matches a topic. A leading wildcard does not match topics that begin with $."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for at, level in enumerate(wanted):
        if level == "#":
            return True
        if at >= len(levels) or level not in {"+", levels[at]}:
            return False
    return len(wanted) == len(levels)


def _is_bounded(text: str) -> bool:
    return 0 < len(text.encode(errors="surrogatepass")) <= MAX_TOPIC_BYTES and (
        text.count("/") < MAX_LEVELS and "\0" not in text
    )
