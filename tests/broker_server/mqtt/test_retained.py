import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.outbox import QueuedMessage
from broker_server.mqtt.retained import Retained
from broker_server.mqtt.topics import matches


def store(cap=10, cap_bytes=10_000):
    return Retained(cap=cap, cap_bytes=cap_bytes)


def test_retained_keeps_the_last_message_and_an_empty_one_clears():
    retained = store()
    assert retained.put(QueuedMessage("a", b"1", 1))
    assert retained.put(QueuedMessage("a", b"2", 1))
    assert [(m.payload, m.retain) for m in retained.matching("a")] == [(b"2", True)]
    assert retained.put(QueuedMessage("a", b""))
    assert retained.put(QueuedMessage("b", b""))
    assert len(retained) == 0
    assert retained.held_bytes == 0


def test_retained_over_a_cap_refuses_and_forgets_what_went_stale():
    retained = store(cap=2)
    assert retained.put(QueuedMessage("a", b"1"))
    assert retained.put(QueuedMessage("b", b"1"))
    assert not retained.put(QueuedMessage("c", b"1"))
    assert not retained.put(QueuedMessage("a", bytes(20_000)))
    assert list(retained.matching("a")) == []
    assert len(retained) == 1


@pytest.mark.parametrize("topic_filter", ["a/#", "#", "+", "a/+", "a", "$x/#", "c", "+/b"])
def test_retained_matches_as_subscriptions_do(topic_filter):
    retained = store()
    topics = ["a", "a/b", "ab", "$x/y", "a/b/c"]
    for topic in topics:
        retained.put(QueuedMessage(topic, b"x"))
    assert [m.topic for m in retained.matching(topic_filter)] == [t for t in topics if matches(topic_filter, t)]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.binary(max_size=600)), max_size=30))
def test_retained_never_goes_over_its_caps(puts):
    retained = store(cap=3, cap_bytes=1500)
    for topic, payload in puts:
        retained.put(QueuedMessage(topic, payload))
        assert len(retained) <= 3
        assert retained.held_bytes <= 1500
        assert retained.held_bytes == sum(m.cost_bytes for m in retained.matching("#"))
