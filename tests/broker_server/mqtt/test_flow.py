import pytest

from broker_server.mqtt.flow import Flow


class Publisher:
    is_held = False

    def hold(self, is_held):
        assert is_held != self.is_held
        self.is_held = is_held


@pytest.fixture
def two():
    return Publisher(), Publisher()


def test_flow_holds_a_publisher_until_all_it_waits_for_are_relieved(two):
    flow, (one, other) = Flow(), two
    flow.block(one, "x", 0.0)
    flow.block(one, "x", 1.0)
    flow.block(one, "y", 1.0)
    flow.block(other, "x", 1.0)
    flow.relieve("x")
    assert (one.is_held, other.is_held) == (True, False)
    assert flow.is_held(one)
    assert not flow.is_awaited("x")
    flow.relieve("y")
    flow.relieve("y")
    assert not one.is_held


def test_flow_names_who_holds_others_back_for_too_long(two):
    flow, (one, other) = Flow(), two
    flow.block(one, "x", 0.0)
    flow.block(other, "x", 9.0)
    flow.block(other, "y", 9.0)
    assert flow.stalled(10.0, 10.0) == []
    assert flow.stalled(10.5, 10.0) == ["x"]


def test_flow_forgets_a_publisher_that_is_gone(two):
    flow, (one, other) = Flow(), two
    flow.block(one, "x", 0.0)
    flow.drop(one)
    flow.drop(other)
    assert flow.stalled(99.0, 1.0) == []
    flow.relieve("x")
    assert one.is_held  # nobody talks to it any more
