from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.fair_queue import FairQueue


def test_fair_queue_lets_a_quiet_source_wait_for_one_item_of_a_loud_one():
    queue = FairQueue()
    for number in range(1000):
        queue.put("loud", number, 1)
    queue.put("quiet", "please", 1)
    assert [queue.get() for _ in range(2)] == [("loud", 0), ("quiet", "please")]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)) | st.none(), max_size=80))
def test_fair_queue_keeps_each_source_s_order_and_its_bytes(acts):
    queue, expected = FairQueue(), {"a": [], "b": [], "c": []}
    for act in acts:
        if act is not None:
            source, cost = act
            queue.put(source, cost, cost)
            expected[source].append(cost)
        elif queue:
            source, item = queue.get()
            assert item == expected[source].pop(0)
        assert bool(queue) == any(expected.values())
        assert queue.bytes == sum(map(sum, expected.values()))
        assert all(queue.bytes_of(source) == sum(costs) for source, costs in expected.items())
