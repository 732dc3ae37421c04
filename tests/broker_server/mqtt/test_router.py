import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.router import Router
from broker_server.mqtt.topics import is_filter, matches

LEVEL = st.sampled_from(["a", "b", "", "$x", "+"])
FILTERS = st.builds(
    lambda levels, tail: "/".join([*levels, *tail]),
    st.lists(LEVEL, min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
).filter(is_filter)
TOPICS = st.lists(st.sampled_from(["a", "b", "", "$x"]), min_size=1, max_size=4).map("/".join)
ACTIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 3), FILTERS, st.integers(0, 1)), max_size=30)


@pytest.mark.slow
@given(actions=ACTIONS, dropped=st.integers(0, 4), topics=st.lists(TOPICS, min_size=1, max_size=5))
def test_router_agrees_with_matching_one_filter_at_a_time(actions, dropped, topics):
    router, model = Router(), {}
    for is_added, who, topic_filter, qos in actions:
        if is_added:
            router.subscribe(who, topic_filter, qos)
            model[who, topic_filter] = qos
        else:
            router.unsubscribe(who, topic_filter)
            model.pop((who, topic_filter), None)
    router.drop(dropped)
    model = {key: qos for key, qos in model.items() if key[0] != dropped}
    for topic in topics:
        expected = {}
        for (who, topic_filter), qos in model.items():
            if matches(topic_filter, topic):
                expected[who] = max(qos, expected.get(who, 0))
        assert router.subscribers(topic) == expected
    for who in range(4):
        assert router.filters(who) == {topic_filter for owner, topic_filter in model if owner == who}


def test_router_forgets_the_nodes_of_filters_that_are_gone():
    router = Router()
    for at in range(100):
        router.subscribe("x", f"a/{at}/+", 1)
    router.subscribe("x", "a/7/+/c", 1)
    for at in range(100):
        router.unsubscribe("x", f"a/{at}/+")
    assert list(router._root.children["a"].children) == ["7"]
    router.drop("x")
    assert router._root.children == {}
