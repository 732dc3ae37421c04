import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker_server.mqtt.outbox import Outbox, QueuedMessage

CAP = 3000


def message(number=0, qos=1, size=10):
    return QueuedMessage(f"t/{number}", bytes(size), qos)


def box(window=2, cap_bytes=CAP):
    return Outbox(cap_bytes=cap_bytes, window=window)


def test_outbox_sends_no_more_than_its_window_until_acknowledged():
    outbox = box()
    for number in range(3):
        assert outbox.offer(message(number))
    first, second = outbox.take(), outbox.take()
    assert (first.topic, second.topic, outbox.take()) == ("t/0", "t/1", None)
    assert outbox.acknowledge(second.packet_id)
    assert outbox.take().topic == "t/2"
    assert not outbox.acknowledge(second.packet_id)


def test_outbox_sends_again_after_a_restart_what_is_unacknowledged_first():
    outbox = box()
    for number in range(3):
        outbox.offer(message(number))
    first, second = outbox.take(), outbox.take()
    outbox.restart()
    outbox.acknowledge(first.packet_id)
    again = outbox.take()
    assert (again.topic, again.packet_id, again.dup) == ("t/1", second.packet_id, True)
    third = outbox.take()
    assert (third.topic, third.dup) == ("t/2", False)


def test_outbox_that_is_full_takes_qos_1_up_to_twice_its_cap_and_no_qos_0():
    outbox = box()
    while not outbox.is_full:
        assert outbox.offer(message(qos=0, size=500))
    assert not outbox.offer(message(qos=0))
    while outbox.offer(message(size=500)):
        pass
    assert CAP < outbox.held_bytes <= 2 * CAP


def test_outbox_of_a_client_that_is_away_keeps_qos_1_up_to_its_cap():
    outbox = box()
    assert not outbox.offer(message(qos=0), is_away=True)
    while outbox.offer(message(size=500), is_away=True):
        pass
    assert CAP / 2 < outbox.held_bytes <= CAP


@pytest.mark.slow
def test_outbox_never_gives_two_messages_the_same_packet_id():
    outbox = box(window=3)
    for number in range(3):
        outbox.offer(message(number))
    slow, second, third = outbox.take(), outbox.take(), outbox.take()
    outbox.acknowledge(second.packet_id)
    outbox.acknowledge(third.packet_id)
    ids = set()
    for number in range(70_000):
        outbox.offer(message(number))
        packet_id = outbox.take().packet_id
        ids.add(packet_id)
        outbox.acknowledge(packet_id)
    assert slow.packet_id not in ids
    assert ids == set(range(1, 0x10000)) - {slow.packet_id}


def test_outbox_cleared_is_empty():
    outbox = box()
    for number in range(4):
        outbox.offer(message(number))
    outbox.take()
    assert outbox.clear() == 4
    assert (len(outbox), outbox.held_bytes, outbox.take()) == (0, 0, None)


class OutboxMachine(RuleBasedStateMachine):
    """Every message taken in arrives in order, exactly once but for repetitions marked DUP, and memory is bounded."""

    def __init__(self):
        super().__init__()
        self.outbox = box(window=3)
        self.count = 0
        self.expected = []
        self.unacknowledged = {}

    @rule(qos=st.integers(0, 1), size=st.integers(0, 800), is_away=st.booleans())
    def offer(self, qos, size, is_away):
        if self.outbox.offer(message(self.count, qos, size), is_away=is_away):
            self.expected.append(f"t/{self.count}")
        self.count += 1

    @rule()
    def take(self):
        packet = self.outbox.take()
        if packet is None:
            return
        if packet.dup:
            assert self.unacknowledged[packet.packet_id] == packet.topic
            return
        assert packet.topic == self.expected.pop(0)
        if packet.qos:
            assert packet.packet_id not in self.unacknowledged
            self.unacknowledged[packet.packet_id] = packet.topic

    @rule(packet_id=st.integers(1, 20))
    def acknowledge(self, packet_id):
        assert self.outbox.acknowledge(packet_id) == (packet_id in self.unacknowledged)
        self.unacknowledged.pop(packet_id, None)

    @rule()
    def restart(self):
        self.outbox.restart()

    @invariant()
    def is_bounded(self):
        assert self.outbox.held_bytes <= 2 * CAP
        assert len(self.unacknowledged) <= 3
        assert len(self.outbox) == len(self.expected) + len(self.unacknowledged)


OutboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOutboxMachine = OutboxMachine.TestCase
