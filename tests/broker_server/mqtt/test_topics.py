import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.topics import MAX_LEVELS, MAX_TOPIC_BYTES, is_filter, is_topic, matches

LEVELS = st.lists(st.sampled_from(["a", "b", "", "$x"]), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("+", "/a", False),
        ("/+", "/a", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_matches_examples_of_the_standard(topic_filter, topic, expected):
    assert matches(topic_filter, topic) is expected


@pytest.mark.parametrize("bad", ["", "a\0b", "a" * (MAX_TOPIC_BYTES + 1), "/" * MAX_LEVELS, "é" * MAX_TOPIC_BYTES])
def test_topics_out_of_bounds_are_neither_topic_nor_filter(bad):
    assert not is_topic(bad)
    assert not is_filter(bad)


@pytest.mark.parametrize("bad", ["a+", "+a/b", "#/a", "a#", "a/#/b", "##"])
def test_filter_with_a_misplaced_wildcard_is_none(bad):
    assert not is_filter(bad)


@pytest.mark.parametrize("good", ["+", "#", "a/+/b", "+/+", "/", "a/#", "$SYS/#"])
def test_filter_with_wildcards_in_place(good):
    assert is_filter(good)


@given(levels=LEVELS)
def test_topic_matches_itself_and_no_wildcard_is_a_topic(levels):
    topic = "/".join(levels)
    assert not topic or (is_topic(topic) and matches(topic, topic))
    assert not is_topic(f"{topic}/+")
    assert not is_topic(f"{topic}/#")
